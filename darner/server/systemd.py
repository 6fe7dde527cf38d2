"""systemd: the sockets it hands in, and the state of the server it is told.

Both are a few lines, and the packages for them are no longer maintained (sdnotify) or need libsystemd's
headers.
"""

import os
import socket

import structlog

from darner.errors import StartError

log = structlog.get_logger()

# The first socket's descriptor (SD_LISTEN_FDS_START), behind standard input, output and error.
FIRST_FD = 3
# A number of sockets has fewer digits than this.
MAX_DIGITS = 6
FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
# How long, in seconds, telling systemd may take: the event loop waits.
NOTIFY_S = 1.0


def sockets() -> list[socket.socket]:
    """Return the sockets that systemd listens on for this process; none if there are none. To be called once.

    Raises StartError if one of them is no listening TCP or Unix socket.
    """
    process = os.environ.pop("LISTEN_PID", "")
    count = os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if process != str(os.getpid()) or not count:
        return []
    if not (count.isascii() and count.isdecimal() and len(count) < MAX_DIGITS):
        raise StartError(
            f"LISTEN_FDS is {count[:MAX_DIGITS]!r}, where systemd says how many sockets there are"
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
    """Tell systemd, if it asks for it, the state of the server: `READY=1`, `STOPPING=1`."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # Linux's abstract namespace
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(NOTIFY_S)
            sock.connect(address)
            sock.sendall(state.encode())
    except OSError as error:
        log.warning("cannot notify systemd", state=state, reason=error.strerror or str(error))
