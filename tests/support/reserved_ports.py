"""Ports that are known before anything listens there, and stay the same over restarts."""

import contextlib
import random
import socket
from collections.abc import Iterator

# Below the ports that Linux gives to outgoing connections and to listeners that name none.
FIRST, LAST = 12_000, 31_999


@contextlib.contextmanager
def reserved_ports(count: int) -> Iterator[list[int]]:
    """Yield free ports of 127.0.0.1 that no other caller in any process gets meanwhile."""
    with contextlib.ExitStack() as reservations:
        ports: list[int] = []
        while len(ports) < count:
            port = random.randint(FIRST, LAST)
            # An abstract name goes with its process, whatever ends that.
            reservation = reservations.enter_context(socket.socket(socket.AF_UNIX))
            try:
                reservation.bind(f"\0darner-test-port-{port}")
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
        yield ports
