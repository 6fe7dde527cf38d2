"""TLS: the certificates that the settings name, as what the event loop takes."""

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import cast

from darner.errors import ConfigError


class _Context(ssl.SSLContext):
    """Knows whom to tell why a handshake failed."""

    failed: Callable[[str], None]


class _Object(ssl.SSLObject):
    """Tells why its handshake failed: the event loop drops it without a word."""

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            cast("_Context", self.context).failed(error.reason or str(error))
            raise


def context(
    cert: Path, key: Path, ca: Path | None, failed: Callable[[str], None] = lambda _: None
) -> ssl.SSLContext:
    """Return a context for a server that shows `cert` (with the chain behind it) and, with `ca`, takes
    only clients that show one signed by it. TLS 1.2 and later. `failed` is told why a handshake failed.

    Read anew with each call. Raises ConfigError, which says what is wrong with which file.
    """
    made = _Context(ssl.PROTOCOL_TLS_SERVER)
    made.failed = failed
    made.sslobject_class = _Object
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # a key with a passphrase would have OpenSSL ask for it on the terminal
        made.load_cert_chain(cert, key, password=lambda: "")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot use tls_cert {cert} with tls_key {key}: {_reason(error)}") from error
    if ca is not None:
        try:
            made.load_verify_locations(ca)
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot use tls_ca {ca}: {_reason(error)}") from error
        made.verify_mode = ssl.CERT_REQUIRED
    return made


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "no certificate or key in PEM, or a key with a passphrase"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
