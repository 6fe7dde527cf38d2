# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""The times that items are stored with, which go on evenly while the system's clock is set.

No clock is in here: the wall clock and the monotonic clock are handed in. A stored time is a *stamp* of 62
bits: the number of a run, followed by milliseconds. During a run stamps go on with the monotonic clock (see
clock_runs.py). The difference between a run's milliseconds and the wall clock is kept once for all stamps of
the run, so no stamp has to be changed when the clock is set. A stamp without a run is a date of the wall
clock.
"""

from collections.abc import Callable, Mapping

from darner._records import since_boot_ms

# Milliseconds; of the Unix epoch, or a monotonic clock's.
Clock = Callable[[], int]

# Milliseconds of the Unix epoch, up to the year 2527.
RUN_BITS = 44
# The number of the first run. Smaller stamps are dates: before there were runs, a date could be up to 1 <<
# 53.
FIRST_RUN = 1 << 10
RUNS_END = 1 << 18
# Later than any stamp.
NEVER = RUNS_END << RUN_BITS
# If it takes longer to read both clocks, the process was held up in between.
LOOK_MS = 100


def run_of(stamp: int) -> int:
    """Return the run of a stamp; 0 if it is a date."""
    run = stamp >> RUN_BITS
    return run if run >= FIRST_RUN else 0


def start_of(run: int) -> int:
    """Return the least stamp of a run, or of the dates if that is 0."""
    return run << RUN_BITS


def end_of(run: int) -> int:
    """Return the least stamp that is after a run, or after the dates if that is 0."""
    return max(run + 1, FIRST_RUN) << RUN_BITS


class Timeline:
    """The present run, and the differences between stamps, its own and earlier ones, and the wall clock.

    Without a monotonic clock stamps are dates.
    """

    __slots__ = (
        "_earlier", "_end", "_is_since_boot", "_monotonic", "_origin", "_start", "_wall", "last", "offset_ms",
    )  # fmt: skip

    def __init__(
        self,
        wall: Clock,
        monotonic: Clock | None = None,
        run: int = 0,
        origin_ms: int = 0,
        offset_ms: int = 0,
        earlier: Mapping[int, int] | None = None,
    ) -> None:
        """Go on with `run`, whose milliseconds are `origin_ms` more than the monotonic clock's and
        `offset_ms` less than the wall clock's. `earlier` has the offsets of earlier runs."""
        self._wall = wall
        self._monotonic = monotonic or wall
        # whether that is the machine's, which is called directly then: each request asks for the time
        self._is_since_boot = monotonic is since_boot_ms
        self._start = start_of(run)
        self._end = end_of(run)
        self._origin = self._start + origin_ms
        self.offset_ms = offset_ms
        self._earlier = dict(earlier or {})
        # the latest stamp of the run
        self.last = self._end - 1

    def now(self) -> int:
        """Return the stamp of this moment."""
        ms = since_boot_ms() if self._is_since_boot else self._monotonic()
        return ms + self._origin

    def look(self) -> int:
        """Read the wall clock, and keep its difference to the stamps. Returns by how many ms the difference
        has changed since the last time: less than 0 if the clock was set back; a few ms are drift."""
        if self._monotonic is self._wall:
            return 0
        before, wall = self.now(), self._wall()
        if self.now() - before > LOOK_MS:
            return 0  # the two readings do not belong together; the next ones may
        was_ms, self.offset_ms = self.offset_ms, wall - (before - self._start)
        return self.offset_ms - was_ms

    def is_present(self, stamp: int) -> bool:
        """Return whether a stamp is of the present run."""
        return self._start <= stamp < self._end

    def date_ms(self, stamp: int) -> int:
        """Return the date of a stamp in ms of the Unix epoch, by the wall clock as it is set now."""
        if self.is_present(stamp):
            return stamp - self._start + self.offset_ms
        run = run_of(stamp)
        return stamp - start_of(run) + self._earlier.get(run, 0) if run else stamp

    def has_passed(self, stamp: int, now: int) -> bool:
        """Return whether a stamp is not after `now`, which is a stamp of the present run."""
        if self.is_present(stamp):
            return stamp <= now
        return self.date_ms(stamp) <= self.date_ms(now)

    def age_ms(self, stamp: int, now: int) -> int:
        """Return how many ms a stamp is before `now`; 0 if it is after that by the wall clock."""
        return max(0, self.date_ms(now) - self.date_ms(stamp))


class Earliest:
    """The earliest of some stamps. It is kept apart for the present run and for all others, which a step of
    the wall clock moves against the present."""

    __slots__ = ("_date_ms", "_present", "_times")

    def __init__(self, times: Timeline) -> None:
        self._times = times
        self.clear()

    def clear(self) -> None:
        """Forget all stamps."""
        self._present = self._date_ms = NEVER

    def note(self, stamp: int) -> bool:
        """Add a stamp; returns whether it is earlier than those added before."""
        if self._times.is_present(stamp):
            if stamp >= self._present:
                return False
            self._present = stamp
            return True
        date_ms = self._times.date_ms(stamp)
        if date_ms >= self._date_ms:
            return False
        self._date_ms = date_ms
        return True

    def is_never(self) -> bool:
        """Return whether no stamp was added."""
        return self._present == self._date_ms == NEVER

    def has_passed(self, now: int) -> bool:
        """Return whether one of the stamps is not after `now`, which is a stamp of the present run."""
        return self._present <= now or self._date_ms <= self._times.date_ms(now)
