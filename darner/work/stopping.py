"""How a worker is told to end: by `Worker.stop`, and by signals."""

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """The wish that a worker ends: any thread may have it, and before anybody listens.

    There is no lock in it, which a signal could find taken: either `set` sees who listens, or `told_to` sees
    that it was set, or both.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._end: Callable[[], object] | None = None

    def set(self) -> None:
        """Have the worker end. To be set again makes no difference."""
        self._is_set = True
        if (end := self._end) is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just closed
                end()

    @contextlib.contextmanager
    def told_to(self, end: Callable[[], object]) -> Iterator[None]:
        """Call `end` on the running event loop when the wish is there, perhaps more than once; at once if it is
        there already."""
        loop = asyncio.get_running_loop()
        self._end = lambda: loop.call_soon_threadsafe(end)
        if self._is_set:
            end()
        try:
            with _woken_by_signals(loop):
                yield
        finally:
            self._end = None


@contextlib.contextmanager
def _woken_by_signals(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Wake the loop of the main thread for each signal: Python calls a handler in that thread alone, and the
    system may have delivered the signal to another one while this one waits."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        loop.add_reader(ours, ours.recv, 4096)
        before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            loop.remove_reader(ours)


@contextlib.contextmanager
def stopped_by_signals(stop: Stop) -> Iterator[None]:
    """Let SIGTERM and SIGINT stop the worker. A second one ends the process at once, with exit status 1: the
    connections break, and what was in progress goes back. In another thread than the main one, do nothing."""
    count = 0

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        if count > 1:
            os._exit(1)
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [signal.signal(number, handle) for number in SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
