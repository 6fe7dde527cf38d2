"""TCP sockets to listen on: the addresses of a host, and a socket bound to each."""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from darner.errors import StartError

# The wildcard addresses: each accepts connections to every address of its family; the first one to those of
# IPv4, too, if the system can.
WILDCARDS = ("::", "0.0.0.0")  # noqa: S104
# How many ports chosen by the system are tried until one is free on all addresses.
PORTS_TRIED = 16


def unusable(host: str, port: int, error: OSError, host_key: str, port_key: str) -> StartError:
    """Return the error that says why nobody can listen there, and what to do about it. The keys are those of
    the settings that give host and port."""
    where = f"cannot listen on {f'[{host}]' if ':' in host else host}:{port}"
    if isinstance(error, socket.gaierror):
        return StartError(
            f"{where}: cannot resolve the host {host}: {error.strerror}; give another with {host_key}"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return StartError(
            f"{where}: {host} is not an address of this machine; give one that is with {host_key}"
        )
    number = error.errno or 0
    why = os.strerror(number) if number else str(error)
    remedies = {
        errno.EADDRINUSE: f"stop what listens there, or give another with {port_key}",
        errno.EACCES: f"give one from 1024 on with {port_key}, or the right to this (CAP_NET_BIND_SERVICE)",
        errno.EAFNOSUPPORT: f"this machine has no IPv{6 if ':' in host else 4}; give another with {host_key}",
        errno.EINVAL: f"an address fe80:… ends in its interface, as fe80::1%eth0; give it with {host_key}",
    }
    return StartError(f"{where}: {why}; {remedies.get(number, f'give another with {host_key}')}")


class Address(NamedTuple):
    """An address that can be listened on, and the host it belongs to."""

    host: str
    family: int
    # the socket address: address and port; of IPv6, flow and scope, too
    where: tuple[Any, ...]

    def covers(self, other: "Address") -> bool:
        """Return whether this one accepts the connections of the other, too, so that both cannot be used."""
        return (
            other is not self
            and self.where[0] in WILDCARDS
            and (self.family == other.family or (self.where[0] == "::" and socket.has_dualstack_ipv6()))
        )


def _resolve(host: str, port: int) -> Iterator[Address]:
    """Yield the addresses of a host. Raises OSError."""
    name = host if host != "*" else "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except UnicodeError as error:  # a label of the name is empty, or too long
        raise socket.gaierror(socket.EAI_NONAME, "it is no name of a host") from error
    for family, _, _, _, where in found:
        yield Address(host, family, where)


def bind(
    hosts: Sequence[str], port: int, host_key: str = "--host", port_key: str = "--port"
) -> list[socket.socket]:
    """Return a bound socket for each address of these hosts, all with the same port; they do not listen yet.

    Port 0 lets the system choose. An address that the machine does not have is left out if its host has
    another one. Raises StartError.
    """
    found: dict[tuple[Any, ...], Address] = {}
    for host in hosts:
        try:
            for address in _resolve(host, port):
                found.setdefault(address.where, address)
        except OSError as error:
            raise unusable(host, port, error, host_key, port_key) from error
    addresses = [
        address for address in found.values() if not any(wide.covers(address) for wide in found.values())
    ]
    for _ in range(PORTS_TRIED):
        try:
            return _bind(addresses, port)
        except _UnusableAddress as unusable_address:
            failed, cause = unusable_address.args
            if port or cause.errno != errno.EADDRINUSE:
                break
    raise unusable(failed.host, port, cause, host_key, port_key) from cause


class _UnusableAddress(Exception):  # noqa: N818
    """An address that cannot be bound, and the OSError that says why."""


def _bind(addresses: list[Address], port: int) -> list[socket.socket]:
    missing: dict[str, _UnusableAddress] = {}
    with contextlib.ExitStack() as bound:
        sockets: dict[Address, socket.socket] = {}
        for address in addresses:
            try:
                sock = bound.enter_context(socket.socket(address.family, socket.SOCK_STREAM))
                _bind_to(sock, address, port)
            except OSError as error:
                missing[address.host] = _UnusableAddress(address, error)
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise missing[address.host] from error
            else:
                sockets[address] = sock
                # with port 0, the system has chosen one for the first address
                port = sock.getsockname()[1]
        for host, unusable_address in missing.items():
            if all(address.host != host for address in sockets):
                raise unusable_address
        bound.pop_all()
        return list(sockets.values())


def _bind_to(sock: socket.socket, address: Address, port: int) -> None:
    host, _, *rest = address.where
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if address.family == socket.AF_INET6:
        is_dual = host == "::" and socket.has_dualstack_ipv6()
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not is_dual)
    sock.bind((host, port, *rest))
