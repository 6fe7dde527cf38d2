"""The listening sockets of a server, from open to close.

uvloop accepts connections well, but keeps its listeners to itself: the certificates of one cannot be
changed, and when the system has no descriptor or memory for one more connection, one either spends a whole
processor on trying again or is closed without a word, depending on the version of libuv. So the bound
sockets are kept here, and a listener whose certificates change, or that fails to accept, is replaced.
"""

import asyncio
import contextlib
import os
import select
import socket
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from darner.access.pending_connection import LOGIN_S
from darner.access.throttled_warning import ThrottledWarning
from darner.server.tcp import bind, unusable
from darner.server.unix import open_unix, unusable_unix

log = structlog.get_logger()

# How many connections may wait to be accepted; the system caps it (net.core.somaxconn).
BACKLOG = 4096
# How often, in seconds, listeners are checked for connections that they do not accept.
CHECK_S = 1.0


class Listeners:
    """All listening sockets of one server."""

    def __init__(self, accept: Callable[[], asyncio.Protocol], accepted: Callable[[], int]) -> None:
        """`accept` makes the protocol of each connection; `accepted` returns how many were accepted."""
        self._tls: ssl.SSLContext | None = None
        self._accept = accept
        self._accepted = accepted
        self._sockets: list[socket.socket] = []
        # the path of the Unix socket made here, and the device and inode of that file
        self._path: Path | None = None
        self._file: tuple[int, int] | None = None
        self._listeners: list[asyncio.Server] = []
        # set once the listeners have to be replaced
        self._stale = asyncio.Event()

    async def open(
        self,
        tls: ssl.SSLContext | None,
        given: list[socket.socket],
        hosts: Sequence[str],
        port: int,
        path: str | None,
    ) -> None:
        """Listen on the sockets `given`, or without any, on these hosts; and on a Unix socket at `path`, if
        there is a path and none of the sockets given is there. Raises StartError."""
        self._tls = tls
        self._sockets = given or bind(hosts, port)
        if path is not None and not self._listens_at(Path(path)):
            self._sockets.append(open_unix(path))
            self._note_file(Path(path))
        for sock in self._sockets:
            _listen(sock)
        await self._replace()

    def _listens_at(self, path: Path) -> bool:
        """Return whether one of the sockets is at `path`, by whichever name."""
        file = _file(path)
        return file is not None and any(_file(Path(each)) == file for each in self.paths)

    def _note_file(self, path: Path) -> None:
        self._path = path.absolute()
        self._file = _file(path)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each TCP socket."""
        return [sock.getsockname()[:2] for sock in self._sockets if sock.family != socket.AF_UNIX]

    @property
    def paths(self) -> list[str]:
        """The path of each Unix socket; `@` begins a name of Linux's abstract namespace, which only systemd
        hands in."""
        names = [sock.getsockname() for sock in self._sockets if sock.family == socket.AF_UNIX]
        return [os.fsdecode(name).replace("\0", "@", 1) for name in names]

    async def _replace(self) -> None:
        """Begin new listeners, and close the ones before. Raises OSError."""
        loop = asyncio.get_running_loop()
        # a listener closes its socket, so each gets a copy
        copies = [sock.dup() for sock in self._sockets]
        fresh = []
        for copy in copies:
            # to a Unix socket the file's permissions say who may connect, and bytes do not leave the machine
            tls = None if copy.family == socket.AF_UNIX else self._tls
            # create_unix_server would, from Python 3.13 on, remove the file together with the listener
            fresh.append(
                await loop.create_server(
                    self._accept,
                    sock=copy,
                    backlog=BACKLOG,
                    ssl=tls,
                    ssl_handshake_timeout=LOGIN_S if tls else None,
                )
            )
        self._close_listeners()
        self._listeners = fresh

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()

    def change_tls(self, tls: ssl.SSLContext | None) -> None:
        """Use this context for connections accepted from now on."""
        self._tls = tls
        self._stale.set()

    async def keep_accepting(self) -> None:
        """Replace listeners that have to change or fail to accept, until cancelled."""
        warning = ThrottledWarning("clients wait, and cannot be accepted; trying again every second")
        before = -1
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stale.wait(), CHECK_S)
            accepted = self._accepted()
            fails = accepted == before and any(map(_has_waiting, self._sockets))
            before = accepted
            if fails:
                self._close_listeners()
            elif not self._stale.is_set():
                continue
            try:
                await self._replace()
            except OSError as error:
                warning.log(reason=error.strerror, action="raise the limit of open files")
                await asyncio.sleep(CHECK_S)
            else:
                self._stale.clear()

    def close(self) -> None:
        """Close all sockets, and delete the Unix socket's file if it is still the one made here."""
        self._close_listeners()
        for sock in self._sockets:
            sock.close()
        if self._path is not None and self._file is not None and _file(self._path) == self._file:
            with contextlib.suppress(OSError):
                self._path.unlink()


def _listen(sock: socket.socket) -> None:
    """Have a bound socket listen. Raises StartError: two servers that are started at the same time may both
    have bound the port."""
    try:
        sock.listen(BACKLOG)
    except OSError as error:
        if sock.family == socket.AF_UNIX:
            raise unusable_unix(sock.getsockname(), error) from error
        host, port, *_ = sock.getsockname()
        raise unusable(host, port, error, "--host", "--port") from error


def _file(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of the file at `path`; None if there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _has_waiting(sock: socket.socket) -> bool:
    """Return whether connections wait to be accepted."""
    ready = select.poll()
    ready.register(sock, select.POLLIN)
    return bool(ready.poll(0))
