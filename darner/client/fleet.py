"""A fleet of servers: which one to ask next, and which ones are down for now.

No I/O and no clock: callers hand in the time, in seconds of a clock that never goes back. Servers are known
by their numbers. All methods may be called from several threads.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

# The pause after a failure: doubled with each further one, so that a server that is down costs little, and
# bounded, so that one that is back is soon used again.
FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 30.0


@dataclass(slots=True)
class _Down:
    """A server that could not be reached."""

    pause_s: float
    until: float


class Fleet:
    """Which of some servers is asked next."""

    def __init__(self, names: Sequence[str]) -> None:
        """`names` must be the same in all clients, in any order: ids are assigned to servers by them."""
        self._names = [name.encode() for name in names]
        self._turns = itertools.count()
        self._down: dict[int, _Down] = {}

    def order(self, now: float) -> Iterator[int]:
        """Give the servers to try, in order: those that are up, each time another one first.

        A server whose pause is over is given to one caller, and is passed over for another pause by all
        others. If all are down, the one whose pause ends first is given.
        """
        count = len(self._names)
        first = next(self._turns) % count
        tried = False
        for number in range(first, first + count):
            if self._may_try(number % count, now):
                tried = True
                yield number % count
        if not tried:
            yield min(range(count), key=self._down_until)

    def home(self, id: bytes) -> int:
        """Return the server of an id: always the same, whatever is down, by rendezvous hashing.

        If a server joins or leaves the fleet, only ids that come to it or were its own have another home.
        """
        return max(range(len(self._names)), key=lambda server: self._weight(server, id))

    def failed(self, server: int, now: float) -> None:
        """Take note that a server could not be reached: it is passed over for a pause."""
        before = self._down.get(server)
        pause_s = FIRST_PAUSE_S if before is None else min(before.pause_s * 2, MAX_PAUSE_S)
        self._down[server] = _Down(pause_s, now + pause_s)

    def reached(self, server: int) -> None:
        """Take note that a server was reached."""
        if self._down:
            self._down.pop(server, None)

    def _may_try(self, server: int, now: float) -> bool:
        down = self._down.get(server)
        if down is None:
            return True
        if down.until > now:
            return False
        down.until = now + down.pause_s
        return True

    def _down_until(self, server: int) -> float:
        down = self._down.get(server)
        return down.until if down is not None else 0.0

    def _weight(self, server: int, id: bytes) -> bytes:
        return blake2b(self._names[server] + b"\0" + id, digest_size=8).digest()
