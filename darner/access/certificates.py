"""The dates of X.509 certificates, which the ssl module tells of a peer's alone."""

import re
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import structlog

log = structlog.get_logger()

CERTIFICATE = re.compile(
    r"-----BEGIN (X509 |TRUSTED )?CERTIFICATE-----.+?-----END (X509 |TRUSTED )?CERTIFICATE-----", re.DOTALL
)
# Tags of DER: a sequence, a date with two digits for the year, and one with four.
_SEQUENCE, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0x17, 0x18


def log_invalid(path: Path, text: str) -> None:
    """Log which certificates in the text of a file have expired or are not valid yet."""
    now = datetime.fromtimestamp(time.time(), UTC)
    for match in CERTIFICATE.finditer(text):
        try:
            begins, ends = validity(ssl.PEM_cert_to_DER_cert(match[0]))
        except ValueError:  # OpenSSL says what it makes of it
            continue
        if now > ends:
            log.error("certificate has expired", file=str(path), at=ends.isoformat(), action="renew it")
        elif now < begins:
            log.error(
                "certificate is not valid yet",
                file=str(path),
                until=begins.isoformat(),
                action="set the clock, or wait",
            )


def validity(certificate: bytes) -> tuple[datetime, datetime]:
    """Return from when to when a certificate in DER is valid. Raises ValueError if it is no certificate."""
    whole = next(_elements(certificate), (0, b""))[1]
    signed = next(_elements(whole), (0, b""))[1]
    for tag, content in _elements(signed):
        if tag == _SEQUENCE:
            dates = list(_elements(content))
            if len(dates) == 2 and all(tag in (_UTC_TIME, _GENERALIZED_TIME) for tag, _ in dates):
                return _date(*dates[0]), _date(*dates[1])
    raise ValueError("it has no dates")


def _elements(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the tag and the content of each element inside an element of DER."""
    at = 0
    while at + 2 <= len(content):
        tag, size = content[at], content[at + 1]
        at += 2
        if size & 0x80:
            digits = size & 0x7F
            size = int.from_bytes(content[at : at + digits], "big")
            at += digits
        yield tag, content[at : at + size]
        at += size


def _date(tag: int, content: bytes) -> datetime:
    text = content.decode("ascii")
    if tag == _UTC_TIME:  # years up to 2049
        text = ("20" if text < "50" else "19") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
