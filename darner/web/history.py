"""The last minutes of a queue, as sparklines show them: a ring of points for each of its figures.

A point is the figure at the end of ten seconds. Times in which nobody asked are gaps.
"""

from array import array
from collections.abc import Container, Sequence

STEP_S = 10
POINTS = 90
# What the points of a queue are of, in the order in which `add` takes them.
SERIES = ("items", "rate_in", "rate_out", "head_age", "waiters", "reserved")
# For so many queues histories are kept, of all servers together: about 2 KiB each.
MAX_QUEUES = 10_000

# What a point is where there is none: figures are 0 or more.
GAP = -1.0


class History:
    """The last 15 minutes of one queue. Times are in seconds of any clock that never goes back."""

    __slots__ = ("_last", "_rings")

    def __init__(self) -> None:
        self._rings = array("f", [GAP]) * (POINTS * len(SERIES))
        # the number of the step that has the latest point
        self._last = -1

    def add(self, now: float, figures: Sequence[float]) -> None:
        """Take the figures of this moment, in the order of SERIES: the last of a step is its point."""
        step = int(now // STEP_S)
        if self._last >= 0:
            for missed in range(max(self._last + 1, step - POINTS + 1), step):
                self._put(missed, [GAP] * len(SERIES))
        self._put(step, figures)
        self._last = step

    def series(self, name: str, now: float, group: int = 1) -> list[float]:
        """Return the points of a figure, oldest first, GAP where there is none: the greatest of each `group`
        of them, which divides POINTS.

        Groups begin at fixed times, so that points which are not the newest stay what they are.
        """
        start = SERIES.index(name) * POINTS
        ring = self._rings[start : start + POINTS]
        end = int(now // STEP_S) // group * group + group
        oldest = end % POINTS
        points = [*ring[oldest:], *ring[:oldest]]
        # what has not come yet has points of the lap before
        missing = min(end - 1 - self._last, POINTS)
        points[POINTS - missing :] = [GAP] * missing
        return points if group == 1 else list(map(max, *(points[at::group] for at in range(group))))

    def _put(self, step: int, figures: Sequence[float]) -> None:
        for number, figure in enumerate(figures):
            self._rings[number * POINTS + step % POINTS] = figure


class Histories:
    """The histories of the queues of all servers; those of queues that are gone are forgotten."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], History] = {}

    def find(self, server: str, queue: str) -> History | None:
        """Return the history of a queue; None if there is none."""
        return self._kept.get((server, queue))

    def begin(self, server: str, queue: str) -> History | None:
        """Return the history of a queue, made if need be; None if there are too many."""
        history = self._kept.get((server, queue))
        if history is None and len(self._kept) < MAX_QUEUES:
            history = self._kept[server, queue] = History()
        return history

    def keep(self, server: str, queues: Container[str]) -> None:
        """Forget all queues of a server but these."""
        for key in [key for key in self._kept if key[0] == server and key[1] not in queues]:
            del self._kept[key]
