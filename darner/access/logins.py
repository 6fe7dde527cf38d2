"""Passwords that are checked: in threads, two at a time, in turns by address and user, and so many at most.
Addresses from which fewer came lately come first.

A check takes 16 MiB and some 30 ms of a processor, on purpose. So whoever sends wrong passwords could take
the time from those who send right ones: what is rationed here is that time. A check that cannot be done is
never said to have found a wrong password. No socket and no event loop in here.
"""

import hmac
import secrets
from collections import Counter, OrderedDict
from collections.abc import Callable

from darner.access import auth
from darner.environment.offload import Offload

# How many passwords are checked at once: each takes a thread, 16 MiB and some 30 ms of a processor.
CHECKS = 2
# How many different ones may wait for that: with two processors, what is checked in less than half of the
# time that a client waits for it.
MAX_WAITING = 256
# Of how many addresses is remembered how many passwords came from them, and of as many from before.
MAX_ASKED = 10_000

# Told whether the password was right; None if that could not be found out.
Done = Callable[[bool | None], None]


class _Place:
    """A password in line, and all who sent it from this address for this user."""

    __slots__ = ("asking", "password", "user")

    def __init__(self, user: auth.User | None, password: bytes) -> None:
        self.user = user
        self.password = password
        self.asking: list[Done] = []


# Where somebody comes from, and as whom; None is any user that there is not.
_Line = tuple[str, str | None]


class Logins:
    """The checks of one server."""

    def __init__(self, offload: Offload) -> None:
        self._offload = offload
        # Who waits, by line; the first line's turn is next. What is sent twice takes one place.
        self._lines: OrderedDict[_Line, OrderedDict[bytes, _Place]] = OrderedDict()
        self._waiting = 0
        self._checking = 0
        # What was right is not computed again. It is kept as a digest that takes no time, under a key that
        # nobody else has: one for each user, by the hash in the file.
        self._key = secrets.token_bytes(32)
        self._right: dict[str, bytes] = {}
        # how many came from each address that were not known to be right, and in the time before
        self._asked: Counter[str] = Counter()
        self._asked_before: Counter[str] = Counter()

    def check(self, address: str, user: auth.User | None, password: bytes, done: Done) -> Callable[[], None]:
        """Check a password that came from `address`, and call `done`, which may be at once; what is returned
        takes that back."""
        if user is not None and self._was_right(user, password):
            done(True)
            return lambda: None
        if len(self._asked) >= MAX_ASKED:
            self.forgive()
        self._asked[address] += 1
        key = (address, user.password if user is not None else None)
        line = self._lines.get(key)
        place = line.get(password) if line is not None else None
        if place is None:
            if self._waiting >= MAX_WAITING and not self._make_room(key):
                done(None)
                return lambda: None
            place = _Place(user, password)
            self._lines.setdefault(key, OrderedDict())[password] = place
            self._waiting += 1
        place.asking.append(done)
        self._check_next()

        def withdraw() -> None:
            if done in place.asking:
                place.asking.remove(done)

        return withdraw

    def forget(self) -> None:
        """The users have changed: remember nothing of them."""
        self._right.clear()

    def forgive(self) -> None:
        """To be called now and then: the second time an address that sent many passwords is as any other."""
        self._asked_before, self._asked = self._asked, Counter()

    def close(self) -> None:
        """Check nothing more."""
        self._lines.clear()
        self._waiting = 0

    def _digest(self, password: bytes) -> bytes:
        return hmac.digest(self._key, password, "sha256")

    def _was_right(self, user: auth.User, password: bytes) -> bool:
        known = self._right.get(user.password)
        return known is not None and hmac.compare_digest(known, self._digest(password))

    def _times(self, key: _Line) -> int:
        """How many passwords came lately from the address of a line."""
        return self._asked[key[0]] + self._asked_before[key[0]]

    def _make_room(self, key: _Line) -> bool:
        """Have the newest of a line give up its place: of the address that has asked most, the longest.
        Returns whether that has asked more than the one of `key`, or as often with a longer line."""
        last = max(reversed(self._lines), key=lambda each: (self._times(each), len(self._lines[each])))
        ours = self._times(key), len(self._lines.get(key, ())) + 1
        if (self._times(last), len(self._lines[last])) <= ours:
            return False
        _, place = self._lines[last].popitem()
        if not self._lines[last]:
            del self._lines[last]
        self._waiting -= 1
        _tell(place, None)
        return True

    def _check_next(self) -> None:
        while self._lines and self._checking < CHECKS:
            key = min(self._lines, key=self._times)
            line = self._lines.pop(key)
            _, place = line.popitem(last=False)
            self._waiting -= 1
            if line:
                self._lines[key] = line
            if place.asking:
                self._checking += 1
                self._check(place)

    def _check(self, place: _Place) -> None:
        is_right = False

        def work() -> None:
            nonlocal is_right
            is_right = auth.check(place.user, place.password)

        def finished(error: Exception | None) -> None:
            self._checking -= 1
            if is_right and place.user is not None:
                self._right[place.user.password] = self._digest(place.password)
            _tell(place, None if error is not None else is_right)
            self._check_next()

        self._offload(work, finished)


def _tell(place: _Place, outcome: bool | None) -> None:
    asking, place.asking = place.asking, []
    for done in asking:
        done(outcome)
