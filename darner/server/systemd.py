"""What systemd and the server tell each other: sockets on the way in, readiness on the way out.

Both are a few lines, and the packages for it are unkept (sdnotify) or want libsystemd's headers.
"""

import os
import socket

import structlog

from darner.errors import StartError

log = structlog.get_logger()

# SD_LISTEN_FDS_START: the descriptors before it are standard input, output and error.
FIRST_FD = 3
# Of a number of sockets, which is less.
MOST_DIGITS = 6
FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
# How long systemd may take to be told, in seconds.
NOTIFY_S = 1.0


def sockets() -> list[socket.socket]:
    """The sockets systemd listens on for this process; none if it does not. Call it once.

    Raises StartError if one of them is no TCP or Unix socket that listens.
    """
    process = os.environ.pop("LISTEN_PID", "")
    count = os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if process != str(os.getpid()) or not count:
        return []
    if not (count.isascii() and count.isdecimal() and len(count) < MOST_DIGITS):
        raise StartError(
            f"LISTEN_FDS is {count[:MOST_DIGITS]!r}, where systemd says how many sockets there are"
        )
    return [_listener(descriptor) for descriptor in range(FIRST_FD, FIRST_FD + int(count))]


def _listener(descriptor: int) -> socket.socket:
    try:
        os.set_inheritable(descriptor, False)
        sock = socket.socket(fileno=descriptor)
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StartError(
            f"descriptor {descriptor} of systemd is no socket: {reason}; "
            "its unit needs ListenStream=ADDRESS:PORT"
        ) from error
    if sock.type != socket.SOCK_STREAM or sock.family not in FAMILIES:
        raise StartError(
            f"socket {descriptor} from systemd is neither TCP nor a Unix stream socket: its unit needs "
            "ListenStream=ADDRESS:PORT or ListenStream=/PATH"
        )
    if not listens:
        raise StartError(
            f"socket {descriptor} from systemd is a client's connection and does not listen: its unit needs "
            "Accept=no, for one server is for all clients"
            if _is_connected(sock)
            else f"socket {descriptor} from systemd does not listen: its unit needs ListenStream=ADDRESS:PORT"
        )
    return sock


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def notify(state: str) -> None:
    """Tell systemd, if it asked to be told, what the server is up to: `READY=1`, `STOPPING=1`."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # Linux's abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            # the loop waits
            sock.settimeout(NOTIFY_S)
            sock.connect(address)
            sock.sendall(state.encode())
    except OSError as error:
        log.warning("cannot notify systemd", state=state, reason=error.strerror or str(error))
