"""How much one piece of work may take before others have their turn.

One thread serves all clients: what one of them takes of its time, all others wait for. So whoever begins a piece
of work gives it a `Budget`, whatever may take long asks that on its way, and goes on in a later turn once
it is spent. The clock is handed in.
"""

from collections.abc import Callable

# How many seconds of work others wait for, at most but for its last step.
TURN_S = 0.004


class Budget:
    """The time of the turn that is under way: there is one at a time."""

    __slots__ = ("_clock", "_end_s")

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives seconds, and is never set."""
        self._clock = clock
        self._end_s = 0.0

    def begin(self, seconds: float = TURN_S) -> None:
        """A turn of so many seconds begins."""
        self._end_s = self._clock() + seconds

    def is_spent(self) -> bool:
        """Whether the turn should end."""
        return self._clock() >= self._end_s
