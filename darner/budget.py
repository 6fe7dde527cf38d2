"""How much one piece of work may take before others have their turn.

One thread serves all clients: what one of them takes of its time, all others wait for. So whoever begins a
piece of work begins a turn of the `Budget`; whatever may take long asks that on its way, and goes on in a
later turn once it is spent. The clock is handed in.
"""

import math
from collections.abc import Callable

# How many ms of work others wait for, at most but for its last step.
TURN_MS = 4


class Budget:
    """The time of the turn that is under way: there is one at a time."""

    __slots__ = ("_clock", "_end_ms")

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives ms, and is never set. Before the first turn there is no end of time."""
        self._clock = clock
        self._end_ms = math.inf

    def begin(self, ms: float = TURN_MS) -> None:
        """A turn of so many ms begins."""
        self._end_ms = self._clock() + ms

    def is_spent(self) -> bool:
        """Whether the turn should end."""
        return self._clock() >= self._end_ms
