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
import select
import socket
import ssl
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from darner.access.admission import LOGIN_S, Complaint
from darner.errors import StartError

log = structlog.get_logger()

# Connections that may wait to be accepted; the system caps it (net.core.somaxconn).
BACKLOG = 4096
# How often is looked whether they are accepted.
LOOK_S = 1.0
# What answers for every address of its family; for IPv4 too, if it is the first and the system can.
ANY = ("::", "0.0.0.0")  # noqa: S104
# How often another port is looked for that all addresses have.
PORTS_TRIED = 16
# For the user and the group.
UNIX_MODE = 0o660
# What Linux takes, without the NUL at its end.
UNIX_PATH_BYTES = 107


def unusable(host: str, port: int, error: OSError, host_key: str, port_key: str) -> StartError:
    """Return why nobody can listen there, and what can be done about it; the keys set host and port."""
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
    """One that can be listened on, and the host it is an address of."""

    host: str
    family: int
    # as the system has it: the address, the port, and what IPv6 has besides
    where: tuple[Any, ...]

    def covers(self, other: "Address") -> bool:
        """Whether it answers for the other, too: then that cannot be listened on besides."""
        return (
            other is not self
            and self.where[0] in ANY
            and (self.family == other.family or (self.where[0] == "::" and socket.has_dualstack_ipv6()))
        )


def _resolve(host: str, port: int) -> Iterator[Address]:
    """The addresses of a host. Raises OSError."""
    name = host if host != "*" else "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except UnicodeError as error:  # a part of the name is empty, or too long
        raise socket.gaierror(socket.EAI_NONAME, "it is no name of a host") from error
    for family, _, _, _, where in found:
        yield Address(host, family, where)


def bind(
    hosts: Sequence[str], port: int, host_key: str = "--host", port_key: str = "--port"
) -> list[socket.socket]:
    """Return a socket for each address of these hosts, all with one port, that listens to nobody yet; 0 lets
    the system choose the port. An address of a host that the machine does not have is passed over if the host
    has another. Raises StartError."""
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
        except _Unbound as unbound:
            failed, cause = unbound.args
            if port or cause.errno != errno.EADDRINUSE:
                break
    raise unusable(failed.host, port, cause, host_key, port_key) from cause


class _Unbound(Exception):  # noqa: N818
    """An address, and the OSError for which it cannot be had."""


def _bind(addresses: list[Address], port: int) -> list[socket.socket]:
    missing: dict[str, _Unbound] = {}
    with contextlib.ExitStack() as bound:
        sockets: dict[Address, socket.socket] = {}
        for address in addresses:
            _, _, *rest = address.where
            try:
                sock = bound.enter_context(socket.socket(address.family, socket.SOCK_STREAM))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if address.family == socket.AF_INET6:
                    is_dual = address.where[0] == "::" and socket.has_dualstack_ipv6()
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not is_dual)
                sock.bind((address.where[0], port, *rest))
            except OSError as error:
                missing[address.host] = _Unbound(address, error)
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise missing[address.host] from error
            else:
                sockets[address] = sock
                # the system has chosen it for the first
                port = sock.getsockname()[1]
        for host, unbound in missing.items():
            if all(address.host != host for address in sockets):
                raise unbound
        bound.pop_all()
        return list(sockets.values())


def open_unix(path: str) -> socket.socket:
    """Return a Unix socket at `path` that listens to nobody yet: for its user and group. One that nobody
    listens on any more is replaced. Raises StartError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            check_stale(path)
            Path(path).unlink()
            sock.bind(path)
        Path(path).chmod(UNIX_MODE)
    except OSError as error:
        sock.close()
        raise unusable_unix(path, error) from error
    except StartError:
        sock.close()
        raise
    return sock


class SocketInUseError(StartError):
    """Another server listens there."""


def check_stale(path: str) -> None:
    """Raises StartError if what is at `path` is no socket, SocketInUseError if somebody listens on it;
    OSError if that cannot be told."""
    if not Path(path).is_socket():
        raise StartError(
            f"cannot listen on {path}: it is no socket; give another with --socket, or delete it"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            sock.connect(path)
        except ConnectionRefusedError:
            return
        except BlockingIOError:  # as many wait there as may
            pass
    raise SocketInUseError(
        f"cannot listen on {path}: another server does; stop that, or give another with --socket"
    )


def check_unix(path: str) -> None:
    """Raise StartError if nobody could listen there; nothing is changed."""
    directory = Path(path).parent
    try:
        if os.path.lexists(path):
            check_stale(path)
        elif len(os.fsencode(path)) > UNIX_PATH_BYTES:
            raise OSError(errno.ENAMETOOLONG, "")
        if not stat.S_ISDIR(directory.stat().st_mode):
            raise OSError(errno.ENOTDIR, "")
        if not os.access(directory, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, "")
    except OSError as error:
        raise unusable_unix(path, error) from error


def unusable_unix(path: str, error: OSError) -> StartError:
    """Return why nobody can listen on a Unix socket at `path`, and what can be done about it."""
    number = error.errno or errno.ENAMETOOLONG  # which Python itself says, without a number
    remedies = {
        errno.ENOENT: "make its directory",
        errno.ENOTDIR: "make its directory",
        errno.EACCES: "give the user that darner runs as the right to its directory",
        errno.EPERM: "give the user that darner runs as the right to its directory",
        errno.EROFS: "give one on a file system that can be written to with --socket",
        errno.ENAMETOOLONG: f"give one of {UNIX_PATH_BYTES} bytes at most with --socket",
    }
    remedy = remedies.get(number, "give another with --socket")
    return StartError(f"cannot listen on {path}: {os.strerror(number)}; {remedy}")


class Listeners:
    """What is listened on. `accept` makes the protocol of each connection; `accepted` counts them."""

    def __init__(self, accept: Callable[[], asyncio.Protocol], accepted: Callable[[], int]) -> None:
        self._tls: ssl.SSLContext | None = None
        self._accept = accept
        self._accepted = accepted
        self._sockets: list[socket.socket] = []
        # the Unix socket that was made here, and which file that is
        self._path: Path | None = None
        self._file: tuple[int, int] | None = None
        self._listeners: list[asyncio.Server] = []
        self._stale = asyncio.Event()

    async def open(
        self,
        tls: ssl.SSLContext | None,
        given: list[socket.socket],
        hosts: Sequence[str],
        port: int,
        path: str | None,
    ) -> None:
        """Listen on the sockets given, or if there are none, on these hosts; and on a Unix socket, if it has
        a path and is not among those given. Raises StartError."""
        self._tls = tls
        self._sockets = given or bind(hosts, port)
        if path is not None and not self._listens_at(Path(path)):
            self._sockets.append(open_unix(path))
            self._note_file(Path(path))
        for sock in self._sockets:
            _begin(sock)
        await self._listen()

    def _listens_at(self, path: Path) -> bool:
        """Whether one of the sockets is at `path`, however that is written."""
        file = _file(path)
        return file is not None and any(_file(Path(there)) == file for there in self.paths)

    def _note_file(self, path: Path) -> None:
        self._path = path.absolute()
        self._file = _file(path)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where is listened over TCP: host and port."""
        return [sock.getsockname()[:2] for sock in self._sockets if sock.family != socket.AF_UNIX]

    @property
    def paths(self) -> list[str]:
        """The Unix sockets that are listened on; `@` begins one of Linux's abstract namespace, which only
        systemd hands in."""
        names = [sock.getsockname() for sock in self._sockets if sock.family == socket.AF_UNIX]
        return [os.fsdecode(name).replace("\0", "@", 1) for name in names]

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        # a listener closes its socket
        copies = [sock.dup() for sock in self._sockets]
        fresh = [
            # who may open that is for the system to say, and what it carries stays in the machine: no TLS
            await loop.create_unix_server(self._accept, sock=copy, backlog=BACKLOG)
            if copy.family == socket.AF_UNIX
            else await loop.create_server(
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
        # not what somebody has put in its place
        if self._path is not None and self._file is not None and _file(self._path) == self._file:
            with contextlib.suppress(OSError):
                self._path.unlink()


def _begin(sock: socket.socket) -> None:
    """Let it listen. Raises StartError: two servers that are started at once may both have bound the port."""
    try:
        sock.listen(BACKLOG)
    except OSError as error:
        if sock.family == socket.AF_UNIX:
            raise unusable_unix(sock.getsockname(), error) from error
        host, port, *_ = sock.getsockname()
        raise unusable(host, port, error, "--host", "--port") from error


def _file(path: Path) -> tuple[int, int] | None:
    """Which file is there, None if there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _waiting(sock: socket.socket) -> bool:
    """Whether connections wait to be accepted."""
    ready = select.poll()
    ready.register(sock, select.POLLIN)
    return bool(ready.poll(0))
