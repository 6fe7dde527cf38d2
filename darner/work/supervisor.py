"""The processes of a worker: each does one job at a time, and one that dies has its place taken.

A process has connections of its own. So if it is killed, its items go back at once, and the others do not
notice. It ends with this one, however this one ends.
"""

import asyncio
import contextlib
import multiprocessing
import os
import pickle
import random
import signal
import sys
import threading
import time
from dataclasses import replace
from multiprocessing.connection import Connection as Pipe

import structlog

from darner.errors import DarnerError
from darner.work.backoff import pause_s
from darner.work.errors import WorkerError
from darner.work.observer import Nobody, Observer
from darner.work.process import work
from darner.work.settings import Settings
from darner.work.stopping import Stop

log = structlog.get_logger()

# A process that dies sooner than this after its start has another begun only after a pause.
SETTLED_S = 10.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
# How long the processes have for ending by themselves beyond the grace, before they are killed.
ENDING_S = 3.0

# Begun anew, and not forked: what this process has opened, and its threads, are no matter of theirs.
_CONTEXT = multiprocessing.get_context("spawn")


class Supervisor:
    """The processes that do the work of a worker."""

    def __init__(self, settings: Settings, observer: Observer) -> None:
        """Begin none yet. Raises WorkerError if the settings cannot be handed to another process."""
        try:
            pickle.dumps(settings)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise WorkerError(f"this cannot be handed to another process: {error}") from error
        self._settings = settings
        self._observer = observer
        self._stopped = asyncio.Event()
        self._children: set[_Child] = set()
        self._refusal: str | None = None
        self._all_finished = True
        # whether a process has been told to say what is wrong with the settings of the queues
        self._is_advised = False

    async def run(self) -> bool:
        """Have the processes work until `stop`; return whether all that was in progress was finished. Raises
        WorkerError if a server refuses."""
        places = [asyncio.create_task(self._keep()) for _ in range(self._settings.concurrency)]
        try:
            await self._stopped.wait()
            for child in self._children:
                child.process.terminate()
            await asyncio.wait(places, timeout=self._settings.grace + ENDING_S)
        finally:
            for child in self._children:
                self._all_finished = False
                log.warning("a process did not end in time: it is killed", child=child.process.pid)
                child.process.kill()
        await asyncio.gather(*places)
        if self._refusal is not None:
            raise WorkerError(self._refusal)
        return self._all_finished

    def stop(self) -> None:
        """Have all processes finish what they do, and end."""
        self._stopped.set()

    async def _keep(self) -> None:
        """Have one process after the other in a place."""
        deaths = 0
        while not self._stopped.is_set():
            child = _Child(self._settings, self._observer, advises=not self._is_advised)
            self._is_advised = True
            self._children.add(child)
            status = await child.end()
            self._children.discard(child)
            if child.refusal is not None:
                self._refusal = child.refusal
                self.stop()
            elif self._stopped.is_set():
                # one that was ended before it could take anything has nothing unfinished
                self._all_finished &= status in (0, -signal.SIGTERM)
            elif status != 0:
                deaths = deaths + 1 if child.age_s < SETTLED_S else 0
                pause = pause_s(deaths - 1, FIRST_PAUSE_S, LONGEST_PAUSE_S, random.random) if deaths else 0.0
                log.error(
                    "a process died: another takes its place",
                    child=child.process.pid,
                    why=_cause(status),
                    pause_s=round(pause, 3),
                )
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopped.wait(), pause)


class _Child:
    """A process that works, as the supervisor sees it."""

    def __init__(self, settings: Settings, observer: Observer, *, advises: bool) -> None:
        """Begin it."""
        self.refusal: str | None = None
        self._observer = observer
        # the jobs that the observer believes under way: their queues, and since when
        self._jobs: list[tuple[str, float]] = []
        self._began = time.monotonic()
        self._ended = asyncio.Event()
        self._pipe, theirs = _CONTEXT.Pipe(duplex=False)
        self.process = _CONTEXT.Process(target=_run, args=(settings, theirs, advises))
        # an interrupt at the terminal goes to each process, and must not end one that has just begun
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pipe.fileno(), self._read)
        loop.add_reader(self.process.sentinel, self._ended.set)

    @property
    def age_s(self) -> float:
        """How long ago it began."""
        return time.monotonic() - self._began

    async def end(self) -> int:
        """Wait until it has ended; return its exit status, negative if a signal ended it."""
        await self._ended.wait()
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.process.sentinel)
        self.process.join()
        self._read()
        loop.remove_reader(self._pipe.fileno())
        self._pipe.close()
        for queue, since in self._jobs:
            self._observer.note_end(queue, "lost", time.monotonic() - since)
        return self.process.exitcode or 0

    def _read(self) -> None:
        """Read what the process has told."""
        try:
            while self._pipe.poll():
                what, *rest = self._pipe.recv()
                if what == "start":
                    self._jobs.append((rest[0], time.monotonic()))
                    self._observer.note_start(*rest)
                elif what == "end":
                    self._jobs.remove(next(job for job in self._jobs if job[0] == rest[0]))
                    self._observer.note_end(*rest)
                else:
                    (self.refusal,) = rest
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())


class _Teller:
    """The observer in a process: it tells the supervisor."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def note_start(self, queue: str) -> None:
        """Tell that a job has begun."""
        self._pipe.send(("start", queue))

    def note_end(self, queue: str, outcome: str, seconds: float) -> None:
        """Tell that it has ended."""
        self._pipe.send(("end", queue, outcome, seconds))


def _run(settings: Settings, pipe: Pipe, advises: bool) -> None:
    """Be such a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # also told twice: by a service manager that signals all processes, and by the supervisor
    stop = Stop()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    threading.Thread(target=_end_with_supervisor, name="supervisor", daemon=True).start()
    if settings.set_up is not None:
        settings.set_up()
    alone = replace(settings, pool="threads", concurrency=1)
    observer = Nobody() if settings.metrics_port is None else _Teller(pipe)
    try:
        all_finished = asyncio.run(work(alone, alone.load_function(), observer, stop, advises=advises))
    except DarnerError as error:
        pipe.send(("refusal", str(error)))
        sys.exit(1)
    sys.exit(0 if all_finished else 1)


def _end_with_supervisor() -> None:
    """End this process at once when the supervisor has gone without ending it."""
    supervisor = multiprocessing.parent_process()
    assert supervisor is not None
    supervisor.join()
    os._exit(1)


def _cause(status: int) -> str:
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    return f"exit status {status}"
