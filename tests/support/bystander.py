"""A client with small requests, which measures how long the server is busy with others during one of them."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path


def socket_of(data: Path) -> Path:
    """Return the Unix socket at which the server with this data listens for bystanders."""
    return data.with_name("socket")


class Bystander:
    """A bystander in a process of its own, which no other thread of this one keeps waiting.

    The server listens at a Unix socket for it: replies by TCP wait until the kernel has time for them.
    `longest_ns` is the most CPU time that the thread which serves spent during one request. CPU time does not
    grow when the machine is busy with something else.
    """

    def __init__(self, server) -> None:
        self.longest_ns = 0
        self._words = [sys.executable, __file__, str(socket_of(server.data)), str(server.process.pid)]

    def __enter__(self):
        self._process = subprocess.Popen(self._words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout.readline() == b"up\n"
        return self

    def __exit__(self, *_) -> None:
        longest, _ = self._process.communicate(timeout=60)
        self.longest_ns = int(longest)


def main(path: str, pid: str) -> None:
    """Ask until standard input has something to say, which is its end; then print the longest."""
    # as it is about the server, this client must not be kept waiting for a core; only root may ask for that
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    longest = 0
    clock = Path(f"/proc/{pid}/task/{pid}/schedstat")
    os.set_blocking(0, False)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        for asked in range(sys.maxsize):
            begun = int(clock.read_text().split()[0])
            connection.sendall(b"version\r\n")
            while not connection.recv(100).endswith(b"\n"):
                pass
            longest = max(longest, int(clock.read_text().split()[0]) - begun)
            if asked == 10:
                print("up", flush=True)
            if asked > 10 and sys.stdin.buffer.raw.read(1) == b"":
                break
    print(longest)


if __name__ == "__main__":
    main(*sys.argv[1:])
