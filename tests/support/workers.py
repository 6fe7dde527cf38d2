"""A real worker: `python -m darner.work` in a directory that has the module `jobs`."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from running import WAIT_S, until

# Each job says a line on standard output.
JOBS = '''
import asyncio
import os
import signal
import threading
import time
from pathlib import Path

from darner.work import Retry


def say(*words):
    os.write(1, " ".join(map(str, words)).encode() + b"\\n")


def echo(item):
    say(item.value.decode())


async def echo_async(item):
    say(item.value.decode())


def meet(item):
    """End once three of these run at a time."""
    Path(f"met-{item.id}").touch()
    while len(list(Path().glob("met-*"))) < 3:
        time.sleep(0.01)
    say(item.value.decode())


async def meet_async(item):
    Path(f"met-{item.id}").touch()
    while len(list(Path().glob("met-*"))) < 3:
        await asyncio.sleep(0.01)
    say(item.value.decode())


def hold(item):
    """End once there is the file `go`."""
    say("began", item.value.decode(), item.attempts)
    while not Path("go").exists():
        time.sleep(0.01)
    say("ended", item.value.decode())


async def hold_async(item):
    say("began", item.value.decode(), item.attempts)
    while not Path("go").exists():
        await asyncio.sleep(0.01)
    say("ended", item.value.decode())


def fail(item):
    say("tried", item.attempts)
    raise ValueError("that is nothing")


def fail_bad(item):
    if item.value == b"bad":
        raise SystemExit("that is nothing")
    echo(item)


def retry(item):
    say("tried", item.attempts)
    if not item.attempts:
        raise Retry(0.05)


def die(item):
    """Kill this process, but only once."""
    if not item.attempts:
        os.kill(os.getpid(), 9)
    echo(item)


def get_signal(item):
    """Once there is `go`, have the system deliver SIGTERM to this thread; end once there is `signalled`."""
    hold(item)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    while not Path("signalled").exists():
        time.sleep(0.01)


number = 7
'''


class Worker:
    """A worker, running."""

    def __init__(self, directory: Path, name: str, *command: str) -> None:
        self._log = directory / f"{name}.log"
        self._said = b""
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=directory,
                stdout=subprocess.PIPE,
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_for_log(self, text: str) -> None:
        """Wait until the log has this text."""
        until(lambda: text in self.log)

    def said(self, count: int, seconds: float = WAIT_S) -> list[str]:
        """Return the next so many lines that jobs have said; wait for them."""
        deadline = time.monotonic() + seconds
        comes = select.poll()
        comes.register(self.process.stdout, select.POLLIN)
        while self._said.count(b"\n") < count:
            left = max(deadline - time.monotonic(), 0)
            data = os.read(self.process.stdout.fileno(), 65536) if comes.poll(left * 1000) else b""
            if not data:
                raise AssertionError(f"only {self._said!r} was said:\n{self.log}")
            self._said += data
        *lines, self._said = self._said.split(b"\n", count)
        return [line.decode() for line in lines]

    def children(self) -> list[int]:
        """Return the processes that it has begun for jobs."""
        pid = self.process.pid
        found = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return [child for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]

    def ended(self) -> int:
        """Wait until it has ended; return its exit status."""
        return self.process.wait(timeout=WAIT_S)

    def stop(self) -> int:
        """End it by SIGTERM; return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.ended()

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Leave nothing running."""
        self.kill()
        self.process.stdout.close()


@contextlib.contextmanager
def working(directory: Path, function: str, *options: object, name: str = "worker") -> Iterator[Worker]:
    """Start a worker that runs `function` of the jobs above, and kill it at the end if it still runs."""
    (directory / "jobs.py").write_text(JOBS)
    words = (f"jobs:{function}", *map(str, options))
    worker = Worker(directory, name, sys.executable, "-m", "darner.work", *words)
    try:
        yield worker
    finally:
        worker.close()
