"""Celery workers as processes, the tasks that are sent to them, and the ledger of what they did."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from celery import Celery  # type: ignore[import-untyped,unused-ignore]

APP_DIRECTORY = Path(__file__).parent
# Takes a task until the gate is open, in place of a number of seconds.
GATE = -1.0
POLL_S = 0.01
STOP_S = 20.0


class Entry(NamedTuple):
    """A line of the ledger: what happened, to which task, when, in seconds, and in which process."""

    word: str
    number: int
    at: float
    pid: int


class Worker:
    """`celery worker`, with its log; it and the processes of its pool are one group."""

    def __init__(self, log: Path, environment: dict[str, str], *options: str) -> None:
        self._log = log
        command = [sys.executable, "-m", "celery", "--workdir", str(APP_DIRECTORY), "--app", "celery_jobs"]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, "worker", "--hostname", f"{log.stem}@%h", *options],
                env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    @property
    def log(self) -> str:
        """What it has logged."""
        return self._log.read_text(errors="replace")

    def kill(self) -> None:
        """End it and the processes of its pool by SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """End it by SIGTERM: it finishes what it has begun. After a while it is killed."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_S)
        self.kill()


class Project:
    """A Celery project: its settings, its ledger, and the workers that it has started."""

    def __init__(self, directory: Path, broker_url: str, **settings: Any) -> None:
        self._directory = directory
        self._ledger = directory / "ledger"
        self._ledger.touch()
        self._workers: list[Worker] = []
        settings = {
            "broker_url": broker_url,
            "broker_connection_retry_on_startup": True,
            "broker_connection_max_retries": None,
            "task_ignore_result": "result_backend" not in settings,
        } | settings
        self._environment = os.environ | {
            "CELERY_SETTINGS": json.dumps(settings),
            "CELERY_LEDGER": str(self._ledger),
            "C_FORCE_ROOT": "1",
            "PYTHONPATH": os.pathsep.join([str(APP_DIRECTORY), str(APP_DIRECTORY.parents[1])]),
        }
        if broker_url.startswith("darner"):
            import darner.kombu  # noqa: F401, PLC0415  # gives kombu the scheme
        self.app = Celery("bench", set_as_current=False)
        self.app.conf.update(settings)

    def send(self, number: int, seconds: float = 0.0, **options: Any) -> None:
        """Send a task, as `delay()` and `apply_async()` do."""
        self.app.send_task("job", (number, seconds), **options)

    def start_worker(self, name: str, concurrency: int = 1, *options: str) -> Worker:
        """Start a worker."""
        log = self._directory / f"{name}.log"
        worker = Worker(log, self._environment, "--concurrency", str(concurrency), *options)
        self._workers.append(worker)
        return worker

    def entries(self, word: str = "began") -> list[Entry]:
        """Return the entries of one kind, in order."""
        with self._ledger.open() as ledger:
            lines = (line.split() for line in ledger if line.startswith(word) and line.endswith("\n"))
            return [Entry(word, int(number), float(at), int(pid)) for word, number, at, pid in lines]

    def numbers(self, word: str = "began") -> list[int]:
        """Return the numbers of the entries of one kind."""
        return [entry.number for entry in self.entries(word)]

    def wait_for(self, happened: Callable[[], object], seconds: float) -> bool:
        """Wait until `happened()`; return whether it did within this time."""
        deadline = time.monotonic() + seconds
        while not happened():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True

    def open_gate(self) -> None:
        """Let the tasks end that wait for it."""
        self._ledger.with_name("gate").touch()

    def clear(self) -> None:
        """Begin the ledger anew. No worker may run."""
        self._ledger.write_bytes(b"")

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.kill()
        self.app.close()


@contextlib.contextmanager
def project(directory: Path, broker_url: str, **settings: Any) -> Iterator[Project]:
    """Yield a project in a directory that is there, and end its workers."""
    one = Project(directory, broker_url, **settings)
    try:
        yield one
    finally:
        one.close()
