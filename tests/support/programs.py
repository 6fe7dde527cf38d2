"""Programs that a test starts as a user would, and whose output it waits for."""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Program:
    """A Python program, running; what it writes is kept line by line."""

    def __init__(self, *words: object, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *map(str, words)], cwd=ROOT, env=os.environ | environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.output = ""
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def read(self, seconds: float) -> str:
        """Return the next line; "" at the end, and if none comes."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            line = ""
        self.output += line
        return line

    def wait_for(self, text: str, seconds: float = 20.0) -> str:
        """Wait for a line that contains `text` and return it; AssertionError if none comes."""
        while line := self.read(seconds):
            if text in line:
                return line
        raise AssertionError(f"no line with {text!r}:\n{self.output}")

    def kill(self) -> None:
        """End the program by SIGKILL."""
        self.end(signal.SIGKILL)

    def end(self, number: int = signal.SIGTERM) -> int:
        """End the program by a signal, and return its exit status."""
        self.process.send_signal(number)
        status = self.process.wait(20)
        self._reader.join(20)
        return status


@contextlib.contextmanager
def program(*words: object, **environment: str) -> Iterator[Program]:
    """Start a program, and kill it at the end if it still runs."""
    started = Program(*words, **environment)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.kill()
        while started.read(0):
            pass
        print(started.output)  # seen if the test has failed
        started.process.stdout.close()


def ran(*words: object, **environment: str) -> str:
    """Run a Python program to its end, which must be a good one; return its output."""
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, env=os.environ | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout
