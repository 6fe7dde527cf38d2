# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""The time that items are stored with, which goes on evenly while the system's clock is set.

No clock in here: the wall clock and the monotonic one are handed in. A time that is stored is a *stamp* of
62 bits: the number of a run, and behind it milliseconds. A run is a stretch in which stamps go on with the
monotonic clock: see runs.py. How a run's milliseconds stand to the wall clock is kept once, for all its
stamps, so what is stored need not be touched when the clock is set. A stamp of no run is a date of the wall
clock.
"""

from collections.abc import Callable, Mapping

# Milliseconds; of the Unix epoch, or a monotonic clock's.
Clock = Callable[[], int]

# Milliseconds of the Unix epoch, up to the year 2527.
RUN_BITS = 44
# Smaller stamps are dates: before there were runs, one could be as late as 1 << 53.
FIRST_RUN = 1 << 10
RUNS_END = 1 << 18
# No stamp is as late.
NEVER = RUNS_END << RUN_BITS
# If looking at both clocks takes longer, the process was held up in between.
LOOK_MS = 100


def run_of(stamp: int) -> int:
    """Return the run of a stamp; 0 if it is a date."""
    run = stamp >> RUN_BITS
    return run if run >= FIRST_RUN else 0


def start_of(run: int) -> int:
    """Return the least stamp of a run, or of the dates if that is 0."""
    return run << RUN_BITS


def end_of(run: int) -> int:
    """Return the stamp behind the last one of a run, or of the dates if that is 0."""
    return max(run + 1, FIRST_RUN) << RUN_BITS


class Timeline:
    """The present run, and how its stamps and earlier ones stand to the wall clock.

    Without a monotonic clock stamps are what the wall clock says.
    """

    __slots__ = (
        "_earlier", "_end", "_monotonic", "_origin", "_start", "_wall", "last", "offset_ms",
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
        """Go on with `run`, whose milliseconds are `origin_ms` more than the monotonic clock's, and so many
        less than the wall clock's as `offset_ms` says; `earlier` says that of earlier runs."""
        self._wall = wall
        self._monotonic = monotonic or wall
        self._start = start_of(run)
        self._end = end_of(run)
        self._origin = self._start + origin_ms
        self.offset_ms = offset_ms
        self._earlier = dict(earlier or {})
        # the latest time that can be told
        self.last = self._end - 1

    def now(self) -> int:
        """Return the stamp of this moment."""
        ms = self._monotonic()
        return ms + self._origin

    def look(self) -> int:
        """Take over how the wall clock stands now. Returns by how many milliseconds it was set since the
        last time, less than 0 if back; a few are the drift of the clocks."""
        if self._monotonic is self._wall:
            return 0
        before, wall = self.now(), self._wall()
        if self.now() - before > LOOK_MS:
            return 0  # it says nothing; then at the next look
        was_ms, self.offset_ms = self.offset_ms, wall - (before - self._start)
        return self.offset_ms - was_ms

    def is_present(self, stamp: int) -> bool:
        """Whether a stamp is of the present run."""
        return self._start <= stamp < self._end

    def date_ms(self, stamp: int) -> int:
        """Return the date of a stamp, in ms of the Unix epoch, as far as the wall clock is right now."""
        if self.is_present(stamp):
            return stamp - self._start + self.offset_ms
        run = run_of(stamp)
        return stamp - start_of(run) + self._earlier.get(run, 0) if run else stamp

    def has_passed(self, stamp: int, now: int) -> bool:
        """Whether a stamp is not after `now`, which is one of the present run."""
        if self.is_present(stamp):
            return stamp <= now
        return self.date_ms(stamp) <= self.date_ms(now)

    def age_ms(self, stamp: int, now: int) -> int:
        """Return how long before `now` a stamp is; 0 if the wall clock has it after that."""
        return max(0, self.date_ms(now) - self.date_ms(stamp))


class Earliest:
    """The earliest of some stamps: of the present run, and of the others, for a step of the wall clock moves
    these against the present."""

    __slots__ = ("_date_ms", "_present", "_times")

    def __init__(self, times: Timeline) -> None:
        self._times = times
        self.clear()

    def clear(self) -> None:
        """Forget them all."""
        self._present = self._date_ms = NEVER

    def note(self, stamp: int) -> bool:
        """Take note of a stamp; returns whether it is earlier than those before."""
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
        """Whether there is none."""
        return self._present == self._date_ms == NEVER

    def has_passed(self, now: int) -> bool:
        """Whether one of them is not after `now`, which is one of the present run."""
        return self._present <= now or self._date_ms <= self._times.date_ms(now)
