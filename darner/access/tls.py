"""TLS: the certificates that the settings name, as what the event loop takes."""

import re
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import structlog

from darner.errors import ConfigError

log = structlog.get_logger()

_CERTIFICATE = re.compile(
    r"-----BEGIN (X509 |TRUSTED )?CERTIFICATE-----.+?-----END (X509 |TRUSTED )?CERTIFICATE-----", re.DOTALL
)
_KEY = re.compile(r"-----BEGIN (ENCRYPTED |[A-Z]+ )?PRIVATE KEY-----(\s+Proc-Type: 4,ENCRYPTED)?")
# Of DER: a list, a date with two digits for the year, and one with four.
_SEQUENCE, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0x17, 0x18


class _Context(ssl.SSLContext):
    """Knows whom to ask whether a handshake may begin, and to tell why one failed."""

    failed: Callable[[str], None]
    may_begin: Callable[[], bool]


class _Object(ssl.SSLObject):
    """Tells why its handshake failed: the event loop drops it without a word. And begins none that there is
    no room for: a connection takes a descriptor before its handshake, too, when nothing else can close it."""

    _has_begun = False

    def do_handshake(self) -> None:
        context = cast("_Context", self.context)
        if not self._has_begun:
            self._has_begun = True
            if not context.may_begin():
                raise ssl.SSLError("no room for one more connection")
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            context.failed(error.reason or str(error))
            raise


def context(
    cert: Path,
    key: Path,
    ca: Path | None,
    failed: Callable[[str], None] = lambda _: None,
    may_begin: Callable[[], bool] = lambda: True,
) -> ssl.SSLContext:
    """Return a context for a server that shows `cert` (with the chain behind it) and, with `ca`, takes
    only clients that show one signed by it. TLS 1.2 and later. `failed` is told why a handshake failed;
    `may_begin` is asked before each whether there is room for it.

    Read anew with each call. Raises ConfigError, which says what is wrong with which file; that a certificate
    is out of date is logged, for some clients do not mind.
    """
    certificates, keys = _read(cert, "tls_cert"), _read(key, "tls_key")
    if not _CERTIFICATE.search(certificates):
        raise ConfigError(f"cannot use tls_cert {cert}: it has no certificate in PEM")
    kind = _KEY.search(keys)
    if kind is None:
        raise ConfigError(f"cannot use tls_key {key}: it has no key in PEM")
    if kind[1] == "ENCRYPTED " or kind[2]:
        raise ConfigError(f"cannot use tls_key {key}: it has a passphrase, and nobody to ask for it")
    made = _Context(ssl.PROTOCOL_TLS_SERVER)
    made.failed = failed
    made.may_begin = may_begin
    made.sslobject_class = _Object
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # a key with a passphrase would have OpenSSL ask for it on the terminal
        made.load_cert_chain(cert, key, password=lambda: "")
    except (OSError, ValueError) as error:
        if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"tls_key {key} is not the key of tls_cert {cert}") from error
        raise ConfigError(f"cannot use tls_cert {cert} with tls_key {key}: {_reason(error)}") from error
    _look_at_dates(cert, certificates)
    if ca is not None:
        _look_at_dates(ca, _read(ca, "tls_ca"))
        try:
            made.load_verify_locations(ca)
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot use tls_ca {ca}: {_reason(error)}") from error
        made.verify_mode = ssl.CERT_REQUIRED
    return made


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "it has no certificate in PEM").replace("_", " ").lower()
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _read(path: Path, key: str) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"cannot read {key} {path}: {error.strerror or error}") from error


def _look_at_dates(path: Path, text: str) -> None:
    """Log which certificates in a file are out of date."""
    now = datetime.fromtimestamp(time.time(), UTC)
    for match in _CERTIFICATE.finditer(text):
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
    """Return from when to when a certificate in DER is valid. ValueError if it is none."""
    whole = next(_elements(certificate), (0, b""))[1]
    signed = next(_elements(whole), (0, b""))[1]
    for tag, content in _elements(signed):
        if tag == _SEQUENCE:
            dates = list(_elements(content))
            if len(dates) == 2 and all(tag in (_UTC_TIME, _GENERALIZED_TIME) for tag, _ in dates):
                return _date(*dates[0]), _date(*dates[1])
    raise ValueError("it has no dates")


def _elements(content: bytes) -> Iterator[tuple[int, bytes]]:
    """What lies in an element of DER, one after another: tags, and what is in each."""
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
    if tag == _UTC_TIME:  # up to 2049
        text = ("20" if text < "50" else "19") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
