"""The budget: how long one piece of work may take before others have their turn.

One thread serves all clients, so while one client is served, all others wait. Whoever begins a piece of work
begins a turn of the `Budget`. Work that may take long asks on its way whether the budget is spent, and then
goes on in a later turn. The clock is handed in.
"""

import math
from collections.abc import Callable

# How many ms a turn takes at most, but for its last step.
TURN_MS = 4
# How many ms one turn of each client with much to do takes in all, unless they are so many that each has the
# least.
ROUND_MS = 12
LEAST_MS = 0.25
# For how many ms the clients with much to do are counted: several rounds.
WINDOW_MS = 100


class Budget:
    """The time that is left of the present turn. There is one turn at a time."""

    __slots__ = ("_clock", "_count", "_end_ms", "_sharers", "_window", "_window_end_ms")

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives ms, and is never set. Before the first turn the budget is never spent."""
        self._clock = clock
        self._end_ms = math.inf
        # the number of this window of time and when it ends, and how many clients have had a turn in it and
        # in the one before
        self._window = 0
        self._window_end_ms = -math.inf
        self._count = self._sharers = 0

    def begin(self, ms: float = TURN_MS) -> None:
        """Begin a turn of so many ms."""
        self._end_ms = self._clock() + ms

    def begin_turn(self, window: int) -> int:
        """Begin a turn of one client, which is the shorter the more clients have much to do; returns the
        number of the window. `window` is what the client's last turn returned, at first 0."""
        now = self._clock()
        if now >= self._window_end_ms:
            self._window += 1
            self._window_end_ms = now + WINDOW_MS
            self._sharers, self._count = self._count, 0
        if window != self._window:
            self._count += 1
        self._end_ms = now + max(LEAST_MS, min(TURN_MS, ROUND_MS / max(self._count, self._sharers)))
        return self._window

    def is_spent(self) -> bool:
        """Return whether the turn should end."""
        return self._clock() >= self._end_ms
