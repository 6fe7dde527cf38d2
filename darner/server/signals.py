"""The signals that end the server or have it reload, from the first instant of the process to the last.

They are blocked in every thread, and one thread waits for them. So none ends the process before it is known
what is to be done, none breaks into other work, and a second one ends the process whatever else stands still.
"""

import os
import signal
from collections.abc import Callable
from threading import Lock, Thread

TAKEN = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def hold_back() -> None:
    """Have the signals wait, until `give_back` or for a `Watch`. To be called before any thread begins."""
    signal.pthread_sigmask(signal.SIG_BLOCK, TAKEN)


def give_back() -> None:
    """Have the signals do what they do by default, also those that came meanwhile."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TAKEN)


class Watch:
    """Waits for the signals that `hold_back` has blocked. SIGINT and SIGTERM stop the server, SIGHUP has it
    reload; one more of the first two ends the process at once, with exit status 1 and nothing said."""

    def __init__(self, stop: Callable[[str], object]) -> None:
        """Begin to wait. `stop` is called, in the thread that waits, with the name of the signal."""
        self._stop = stop
        self._reload: Callable[[], object] | None = None
        # whether SIGHUP has come before anybody could reload
        self._owes_reload = False
        self._is_stopping = False
        self._lock = Lock()
        Thread(target=self._wait, name="signals", daemon=True).start()

    def hand_over(self, stop: Callable[[str], object], reload: Callable[[], object]) -> None:
        """Call these from now on, in the thread that waits; `reload` at once if SIGHUP has come before."""
        with self._lock:
            self._stop, self._reload = stop, reload
            if self._owes_reload:
                self._owes_reload = False
                reload()

    def note_stopping(self) -> None:
        """The server is closing for another reason than a signal: one that comes now is one too many."""
        self._is_stopping = True

    def _wait(self) -> None:
        while True:
            number = signal.sigwait(TAKEN)
            if number == signal.SIGHUP:
                self._hung_up()
            elif self._is_stopping:
                os._exit(1)
            else:
                self._is_stopping = True
                with self._lock:
                    self._stop(signal.Signals(number).name)

    def _hung_up(self) -> None:
        with self._lock:
            if self._reload is None:
                self._owes_reload = True
            else:
                self._reload()
