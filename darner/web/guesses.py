"""How often passwords may be guessed. No I/O."""

from collections import deque
from ipaddress import IPv6Address, ip_address

# One address has so many wrong passwords a minute; those of so many addresses are remembered.
PER_MINUTE = 10
ADDRESSES = 256
_MINUTE_S = 60.0


class Guesses:
    """The wrong passwords of the last minute, by the address that they came from.

    If too many addresses have guessed, all others are to wait, too: so guesses are bounded, wherever they
    come from. Times are in seconds of a clock that never goes back.
    """

    def __init__(self) -> None:
        self._wrong: dict[str, deque[float]] = {}

    def may_guess(self, address: str, now: float) -> bool:
        """Return whether a password from this address is to be looked at."""
        for key, times in list(self._wrong.items()):
            while times and times[0] <= now - _MINUTE_S:
                times.popleft()
            if not times:
                del self._wrong[key]
        return len(self._wrong.get(_network(address), ())) < PER_MINUTE and (
            _network(address) in self._wrong or len(self._wrong) < ADDRESSES
        )

    def note_wrong(self, address: str, now: float) -> None:
        """Take note of a wrong password."""
        self._wrong.setdefault(_network(address), deque()).append(now)


def _network(address: str) -> str:
    """Return what one owner has: of IPv6 the first half."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return str(int(found) >> 64) if isinstance(found, IPv6Address) else address
