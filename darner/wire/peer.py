"""The client at the other end of a connection, as the system knows it: its address, the state of TCP, whether
it still answers."""

import asyncio
import select
import socket

# Seconds between two probes of a silent peer, and how many stay unanswered before it counts as dead.
PROBE_INTERVAL_S = 10
PROBES = 3

# States of a TCP connection, as Linux numbers them in the first byte of TCP_INFO: both ends are open; it is
# closed or reset; the peer sends no more.
TCP_ESTABLISHED = 1
TCP_CLOSE = 7
TCP_CLOSE_WAIT = 8


def enable_keepalive(sock: socket.socket, idle_s: int) -> None:
    """Have the system probe the peer once it was silent for `idle_s` seconds. A Unix socket needs no probes:
    its peer is on this machine, and its end is known at once."""
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, min(PROBE_INTERVAL_S, idle_s))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
    if hasattr(socket, "TCP_KEEPIDLE"):  # macOS has it under another name
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle_s)


def tcp_state(transport: asyncio.Transport) -> int:
    """Return the state of the connection as far as the system tells it, else TCP_ESTABLISHED."""
    if not hasattr(socket, "TCP_INFO"):
        return TCP_ESTABLISHED
    if transport.is_closing():
        return TCP_CLOSE
    sock = transport.get_extra_info("socket")
    if sock.family == socket.AF_UNIX:
        ended = select.poll()
        ended.register(sock.fileno(), 0)
        return TCP_CLOSE if ended.poll(0) else TCP_ESTABLISHED
    try:
        state: int = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    except OSError:  # it is no TCP
        return TCP_ESTABLISHED
    return state


def address_of(transport: asyncio.Transport) -> str:
    """Return the client's address, for the log."""
    address = transport.get_extra_info("peername")
    if transport.get_extra_info("socket").family == socket.AF_UNIX:
        return "unix socket"
    return f"{address[0]}:{address[1]}" if address else "gone"
