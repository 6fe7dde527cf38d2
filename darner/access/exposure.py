"""Whether other machines can reach the server unprotected: without TLS, or without users."""

import contextlib
import ipaddress
import socket
from collections.abc import Iterable

import structlog

from darner.config.settings import Settings

log = structlog.get_logger()


def is_loopback(host: str) -> bool:
    """Return whether only this machine can connect to a host, which is a name, an address, or the path of a
    Unix socket."""
    if host == "*":
        return False
    if not host or "/" in host:
        return True
    with contextlib.suppress(OSError, ValueError):
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
        addresses = {ipaddress.ip_address(str(address[0]).partition("%")[0]) for *_, address in found}
        return all((getattr(each, "ipv4_mapped", None) or each).is_loopback for each in addresses)
    return True  # nobody can connect: what is wrong with the host is said elsewhere


def warn_if_exposed(hosts: Iterable[str], settings: Settings) -> None:
    """Log a warning if other machines can reach one of the addresses listened on, without TLS or without
    users. Clients' certificates (`tls_ca`) are as good as users."""
    exposed = [host for host in hosts if not is_loopback(host)]
    protection = {
        "TLS (tls_cert, tls_key)": settings.tls_cert is None,
        "users (auth_file)": settings.auth_file is None and settings.tls_ca is None,
    }
    missing = [name for name, is_missing in protection.items() if is_missing]
    if exposed and missing:
        log.warning(
            "listening beyond loopback",
            host=" ".join(exposed),
            without=" and ".join(missing),
            action="set them, or let host be 127.0.0.1",
        )
