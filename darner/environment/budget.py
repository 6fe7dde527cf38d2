"""How much one piece of work may take before others have their turn.

One thread serves all clients: what one of them takes of its time, all others wait for. So whoever begins a
piece of work begins a turn of the `Budget`; whatever may take long asks that on its way, and goes on in a
later turn once it is spent. The clock is handed in.
"""

import math
from collections.abc import Callable

# How many ms of work others wait for, at most but for its last step.
TURN_MS = 4
# How long all clients that have much to do may take for a turn each, if none gets less than the least.
ROUND_MS = 12
LEAST_MS = 0.25
# For how long the clients are counted that have much to do: several rounds.
WINDOW_MS = 100


class Budget:
    """The time of the turn that is under way: there is one at a time."""

    __slots__ = ("_clock", "_count", "_end_ms", "_sharers", "_window", "_window_end_ms")

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives ms, and is never set. Before the first turn there is no end of time."""
        self._clock = clock
        self._end_ms = math.inf
        # how many have had a turn in this window of time, and in the one before
        self._window = 0
        self._window_end_ms = -math.inf
        self._count = self._sharers = 0

    def begin(self, ms: float = TURN_MS) -> None:
        """A turn of so many ms begins."""
        self._end_ms = self._clock() + ms

    def begin_turn(self, window: int) -> int:
        """The turn of one of the clients begins, which is the shorter the more there are. `window` is what
        the last one of the same client gave, at first 0."""
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
        """Whether the turn should end."""
        return self._clock() >= self._end_ms
