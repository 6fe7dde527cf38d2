"""What the settings say about who may connect: the certificates of TLS, and the users."""

import ssl
from collections.abc import Callable
from pathlib import Path

from darner.access import auth_file, tls
from darner.access.auth_file import Users
from darner.config.settings import Settings


def read_tls(
    settings: Settings,
    failed: Callable[[str], None] = lambda _: None,
    may_begin: Callable[[], bool] = lambda: True,
) -> ssl.SSLContext | None:
    """Return the context of the certificates that the settings name, read anew; None without TLS. Raises
    ConfigError. See `tls.context` for the callbacks."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    ca = None if settings.tls_ca is None else Path(settings.tls_ca)
    return tls.context(Path(settings.tls_cert), Path(settings.tls_key), ca, failed, may_begin)


def read_users(settings: Settings) -> Users | None:
    """Return the users of the `auth_file`, read anew; None if nobody has to log in. Raises ConfigError."""
    return None if settings.auth_file is None else auth_file.load(Path(settings.auth_file))
