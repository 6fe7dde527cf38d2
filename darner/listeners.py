"""The sockets that are listened on, from first to last.

uvloop accepts connections well, but keeps its listeners to itself: the certificates of one cannot be
changed, and when the system has no descriptor or memory for one more connection, one either takes a whole
processor with trying again or is closed without a word, as the version of libuv has it. So what is bound
is kept here, and a listener that is to change, or that does not do its work, is replaced by another.
"""

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import struct
from collections.abc import Callable, Iterator

import structlog

from darner.admission import LOGIN_S, Complaint
from darner.errors import StartError

log = structlog.get_logger()

# Connections that may wait to be accepted; the system caps it (net.core.somaxconn).
BACKLOG = 4096
# How often is looked whether they are accepted.
LOOK_S = 1.0
# Where Linux says in tcp_info how many wait on a socket that listens (tcpi_unacked).
WAITING_AT = 24


def unusable(host: str, port: int, error: OSError, host_key: str, port_key: str) -> StartError:
    """Return why nobody can listen there, and what can be done about it; the keys set host and port."""
    where = f"cannot listen on {host}:{port}"
    if isinstance(error, socket.gaierror):
        hint = (
            "write an IPv6 address without brackets"
            if host.startswith("[")
            else f"give another with {host_key}"
        )
        return StartError(f"{where}: cannot resolve the host {host}: {error.strerror}; {hint}")
    if error.errno == errno.EADDRNOTAVAIL:
        return StartError(
            f"{where}: {host} is not an address of this machine; give one that is with {host_key}"
        )
    number = error.errno or 0
    why = os.strerror(number) if number else str(error)
    remedies = {
        errno.EADDRINUSE: f"stop what listens there, or give another with {port_key}",
        errno.EACCES: f"give one from 1024 on with {port_key}, or the right to this (CAP_NET_BIND_SERVICE)",
    }
    return StartError(f"{where}: {why}; {remedies.get(number, f'give another with {host_key}')}")


def check_usable(host: str, port: int) -> None:
    """Raise OSError if nobody could listen there; nobody does."""
    with _resolving():
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, _, _, _, address in dict.fromkeys(found):
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)


@contextlib.contextmanager
def _resolving() -> Iterator[None]:
    try:
        yield
    except UnicodeError as error:  # a part of the name is empty, or too long
        raise socket.gaierror(socket.EAI_NONAME, "it is no name of a host") from error


class Listeners:
    """What is listened on. `accept` makes the protocol of each connection; `accepted` counts them."""

    def __init__(self, accept: Callable[[], asyncio.Protocol], accepted: Callable[[], int]) -> None:
        self._tls: ssl.SSLContext | None = None
        self._accept = accept
        self._accepted = accepted
        self._sockets: list[socket.socket] = []
        self._listeners: list[asyncio.Server] = []
        self._stale = asyncio.Event()

    async def open(
        self, tls: ssl.SSLContext | None, given: list[socket.socket], host: str, port: int
    ) -> None:
        """Listen on the sockets given, or if there are none, on this address. Raises OSError."""
        self._tls = tls
        loop = asyncio.get_running_loop()
        self._sockets = list(given)
        if not given:
            with _resolving():
                found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, _, _, _, address in dict.fromkeys(found):
                self._sockets.append(socket.create_server(address[:2], family=family, backlog=BACKLOG))
        await self._listen()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where is listened: host and port."""
        return [sock.getsockname()[:2] for sock in self._sockets]

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        # a listener closes its socket
        copies = [sock.dup() for sock in self._sockets]
        fresh = [
            await loop.create_server(
                self._accept,
                sock=copy,
                backlog=BACKLOG,
                ssl=self._tls,
                ssl_handshake_timeout=LOGIN_S if self._tls else None,
            )
            for copy in copies
        ]
        self._stop()
        self._listeners = fresh

    def _stop(self) -> None:
        for listener in self._listeners:
            listener.close()

    def change_tls(self, tls: ssl.SSLContext | None) -> None:
        """Encrypt connections with this from now on, but for those that there are."""
        self._tls = tls
        self._stale.set()

    async def keep(self) -> None:
        """See to it that connections are accepted, until cancelled."""
        complaint = Complaint("clients wait, and cannot be accepted; trying again every second")
        before = -1
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stale.wait(), LOOK_S)
            accepted = self._accepted()
            stuck = accepted == before and any(map(_waiting, self._sockets))
            before = accepted
            if stuck:
                self._stop()
            elif not self._stale.is_set():
                continue
            try:
                await self._listen()
            except OSError as error:
                complaint.log(reason=error.strerror, action="raise the limit of open files")
                await asyncio.sleep(LOOK_S)
            else:
                self._stale.clear()

    def close(self) -> None:
        """Listen no more."""
        self._stop()
        for sock in self._sockets:
            sock.close()


def _waiting(sock: socket.socket) -> int:
    """How many connections wait to be accepted; 0 where the system does not say."""
    if not hasattr(socket, "TCP_INFO"):
        return 0
    told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, WAITING_AT + 4)
    return int(struct.unpack_from("=I", told, WAITING_AT)[0])
