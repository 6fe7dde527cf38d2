"""The signals that stop the server or have it reload, from the first instant of the process to the last.

They are blocked in every thread, and one thread waits for them. So no signal ends the process before the
server can say what it does, none interrupts other work, and a second one ends the process even if everything
else hangs.
"""

import os
import signal
from collections.abc import Callable
from threading import Lock, Thread

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def block() -> None:
    """Keep the signals pending, until `unblock` or for a `SignalWatch`. To be called before any thread is
    begun."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def unblock() -> None:
    """Give the signals their default effect, pending ones too."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


class SignalWatch:
    """The thread that waits for the signals that `block` has blocked.

    SIGINT and SIGTERM stop the server, SIGHUP has it reload. One more of the first two ends the process at
    once, with exit status 1 and nothing logged.
    """

    def __init__(self, stop: Callable[[str], object]) -> None:
        """Begin to wait. `stop` is called in the thread, with the name of the signal."""
        self._stop = stop
        self._reload: Callable[[], object] | None = None
        # whether SIGHUP has come before there was a `_reload`
        self._reload_is_due = False
        self._is_stopping = False
        self._lock = Lock()
        Thread(target=self._wait, name="signals", daemon=True).start()

    def set_handlers(self, stop: Callable[[str], object], reload: Callable[[], object]) -> None:
        """Call these from now on, in the thread; `reload` at once if SIGHUP has come already."""
        with self._lock:
            self._stop, self._reload = stop, reload
            if self._reload_is_due:
                self._reload_is_due = False
                reload()

    def note_stopping(self) -> None:
        """Take note that the server is stopping by itself: the next signal counts as the second one."""
        self._is_stopping = True

    def _wait(self) -> None:
        while True:
            number = signal.sigwait(SIGNALS)
            if number == signal.SIGHUP:
                self._request_reload()
            elif self._is_stopping:
                os._exit(1)
            else:
                self._is_stopping = True
                with self._lock:
                    self._stop(signal.Signals(number).name)

    def _request_reload(self) -> None:
        with self._lock:
            if self._reload is None:
                self._reload_is_due = True
            else:
                self._reload()
