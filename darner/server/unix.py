"""Unix sockets to listen on."""

import errno
import os
import socket
import stat
from pathlib import Path

from darner.errors import StartError

# Permissions of the socket: for its user and group.
UNIX_MODE = 0o660
# The longest path that Linux takes, without the NUL at its end.
UNIX_PATH_BYTES = 107


class SocketInUseError(StartError):
    """Another server listens on the socket."""


def open_unix(path: str) -> socket.socket:
    """Return a Unix socket bound to `path`, for its user and group, that does not listen yet. A socket there
    that nobody listens on any more is replaced. Raises StartError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _check_stale(path)
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


def _check_stale(path: str) -> None:
    """Return if nobody listens on the socket at `path`.

    Raises SocketInUseError if somebody does, StartError if it is no socket, OSError if neither can be told.
    """
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
        except BlockingIOError:  # its backlog is full, so there is a listener
            pass
    raise SocketInUseError(
        f"cannot listen on {path}: another server does; stop that, or give another with --socket"
    )


def check_unix(path: str) -> None:
    """Raise StartError if nobody could listen on a Unix socket at `path`. Changes nothing."""
    directory = Path(path).parent
    try:
        if os.path.lexists(path):
            _check_stale(path)
        elif len(os.fsencode(path)) > UNIX_PATH_BYTES:
            raise OSError(errno.ENAMETOOLONG, "")
        if not stat.S_ISDIR(directory.stat().st_mode):
            raise OSError(errno.ENOTDIR, "")
        if not os.access(directory, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, "")
    except OSError as error:
        raise unusable_unix(path, error) from error


def unusable_unix(path: str, error: OSError) -> StartError:
    """Return the error that says why nobody can listen at `path`, and what to do about it."""
    number = error.errno or errno.ENAMETOOLONG  # an error of Python itself, which has no number
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
