"""Whether strangers can reach the server, and what keeps them from reading along or doing as they like."""

import contextlib
import ipaddress
import socket
from collections.abc import Iterable

import structlog

from darner.config.settings import Settings

log = structlog.get_logger()


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to a host, a name or an address, or to a Unix socket, a path."""
    if host == "*":
        return False
    if not host or "/" in host:
        return True
    with contextlib.suppress(OSError, ValueError):
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
        addresses = {ipaddress.ip_address(str(address[0]).partition("%")[0]) for *_, address in found}
        return all((getattr(each, "ipv4_mapped", None) or each).is_loopback for each in addresses)
    return True  # nobody can: what is wrong with it is said elsewhere


def say_open(hosts: Iterable[str], settings: Settings) -> None:
    """Log if other machines can reach one of the addresses that are listened on, without TLS or without
    users. Clients' certificates (`tls_ca`) are as good as users."""
    found = [host for host in hosts if not is_loopback(host)]
    what = {
        "TLS (tls_cert, tls_key)": settings.tls_cert is None,
        "users (auth_file)": settings.auth_file is None and settings.tls_ca is None,
    }
    missing = [name for name, is_missing in what.items() if is_missing]
    if found and missing:
        log.warning(
            "listening beyond loopback",
            host=" ".join(found),
            without=" and ".join(missing),
            action="set them, or let host be 127.0.0.1",
        )
