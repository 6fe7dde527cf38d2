"""How work is handed to another thread, and what comes of it handed back."""

import functools
from collections.abc import Callable

from darner._records import Histogram

# Called with a piece of work and with what is told how it ended: has the work done in a thread, and then the
# outcome told on the event loop: the exception that the work raised, or None.
Offload = Callable[[Callable[[], None], Callable[[Exception | None], None]], None]


def at_once(work: Callable[[], None], done: Callable[[Exception | None], None]) -> None:
    """Do `work` on the calling thread: an `Offload` for when there is no other thread, or nobody who
    waits."""
    try:
        work()
    except Exception as error:  # `done` is told of it
        done(error)
    else:
        done(None)


class Timed:
    """An `Offload` that counts how long its pieces of work took, and how many of them failed."""

    def __init__(self, offload: Offload, clock_ns: Callable[[], int]) -> None:
        """`clock_ns` gives nanoseconds, and is never set."""
        self._offload = offload
        self._clock_ns = clock_ns
        self.durations = Histogram()
        self.failures = 0

    def __call__(self, work: Callable[[], None], done: Callable[[Exception | None], None]) -> None:
        """Have `work` done, and the outcome told: see `Offload`. What was waited for a thread does not
        count."""
        took_ns = 0

        @functools.wraps(work)
        def timed() -> None:
            nonlocal took_ns
            begun_ns = self._clock_ns()
            try:
                work()
            finally:
                took_ns = self._clock_ns() - begun_ns

        def note(error: Exception | None) -> None:
            self.durations.observe(took_ns)
            self.failures += error is not None
            done(error)

        self._offload(timed, note)
