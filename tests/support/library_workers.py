"""Real workers of TaskIQ and Dramatiq, in a directory that has the module `tasks`."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from running import Server, until
from workers import Worker


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has begun, and those that these have."""
    try:
        children = [int(pid) for pid in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []
    return children + [each for child in children for each in descendants(child)]


class LibraryWorker(Worker):
    """A worker of several processes."""

    def kill(self) -> None:
        """End all of them by SIGKILL."""
        for pid in (*descendants(self.process.pid), self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def library_working(directory: Path, program: str, *words: str, name: str = "worker") -> Iterator[Worker]:
    """Start this console script of the venv, and kill it at the end if it still runs."""
    script = Path(sys.executable).with_name(program)
    worker = LibraryWorker(directory, name, str(script), *words)
    try:
        yield worker
    finally:
        worker.close()


def assert_next_worker_takes_over(server: Server, queue: bytes, project) -> None:
    """Kill the worker of a project that has begun a, b and c: another one begins them within a second."""
    first = project.worker(name="first")
    assert sorted(first.said(3)) == ["began a", "began b", "began c"]
    second = project.worker(name="second")
    until(lambda: server.waiters(queue) == 2)
    began = time.monotonic()
    first.kill()
    assert sorted(second.said(3)) == ["began a", "began b", "began c"]
    assert time.monotonic() - began < 1
