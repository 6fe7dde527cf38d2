"""TLS: the certificates that the settings name, as a context for the event loop."""

import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import cast

from darner.access.certificates import CERTIFICATE, log_invalid
from darner.errors import ConfigError

_KEY = re.compile(r"-----BEGIN (ENCRYPTED |[A-Z]+ )?PRIVATE KEY-----(\s+Proc-Type: 4,ENCRYPTED)?")


class _Context(ssl.SSLContext):
    """A context that asks whether a handshake may begin, and tells why one failed."""

    failed: Callable[[str], None]
    may_begin: Callable[[], bool]


class _Object(ssl.SSLObject):
    """One TLS connection, which tells why its handshake failed: the event loop drops it without a word.

    It begins no handshake that there is no room for: a connection takes a descriptor during its handshake,
    too, when nothing else can close it.
    """

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
    """Return the context of a server that shows the certificate `cert` (with the chain behind it) and, with
    `ca`, takes only clients that show one signed by it. TLS 1.2 and later.

    `may_begin` is asked before each handshake whether there is room for it; `failed` is told why one failed.

    The files are read anew with each call. Raises ConfigError, which says what is wrong with which file. That
    a certificate has expired is only logged, for some clients do not mind.
    """
    certificates, keys = _read(cert, "tls_cert"), _read(key, "tls_key")
    if not CERTIFICATE.search(certificates):
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
    _load_certificate(made, cert, key)
    log_invalid(cert, certificates)
    if ca is not None:
        _load_authority(made, ca)
    return made


def _load_certificate(made: ssl.SSLContext, cert: Path, key: Path) -> None:
    try:
        # a key with a passphrase would have OpenSSL ask for it on the terminal
        made.load_cert_chain(cert, key, password=lambda: "")
    except (OSError, ValueError) as error:
        if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"tls_key {key} is not the key of tls_cert {cert}") from error
        raise ConfigError(f"cannot use tls_cert {cert} with tls_key {key}: {_reason(error)}") from error


def _load_authority(made: ssl.SSLContext, ca: Path) -> None:
    log_invalid(ca, _read(ca, "tls_ca"))
    try:
        made.load_verify_locations(ca)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot use tls_ca {ca}: {_reason(error)}") from error
    made.verify_mode = ssl.CERT_REQUIRED


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "it has no certificate in PEM").replace("_", " ").lower()
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _read(path: Path, key: str) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"cannot read {key} {path}: {error.strerror or error}") from error
