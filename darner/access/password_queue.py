"""The checks of passwords: in threads, two at a time, in turns by address and user.

A check takes 16 MiB and some 30 ms of a processor, on purpose. So whoever sends wrong passwords could take
the time from those who send right ones: that time is rationed here. Addresses that sent fewer passwords
lately come first, and only so many passwords may wait. A check that cannot be done is never said to have
found a wrong password. No socket and no event loop in here.
"""

import hmac
import secrets
from collections import Counter, OrderedDict
from collections.abc import Callable

from darner.access.auth_file import User
from darner.access.passwords import is_password
from darner.environment.offload import Offload

# How many passwords are checked at once: each takes a thread, 16 MiB and some 30 ms of a processor.
CHECKS = 2
# How many different ones may wait: with two processors, as many as are checked in half of the time that a
# client has for its login.
MAX_WAITING = 256
# For how many addresses the number of passwords that came from them is kept; twice as many at most.
MAX_ADDRESSES = 10_000

# Called with whether the password is right; with None if it was not checked.
Done = Callable[[bool | None], None]


class _Check:
    """A check that waits: a password, and all clients of one address that sent it for one user."""

    __slots__ = ("callbacks", "password", "user")

    def __init__(self, user: User | None, password: bytes) -> None:
        self.user = user
        self.password = password
        self.callbacks: list[Done] = []

    def tell(self, outcome: bool | None) -> None:
        """Tell the outcome to all clients that wait for it."""
        callbacks, self.callbacks = self.callbacks, []
        for done in callbacks:
            done(outcome)


# An address, and the hash of the user's password; None stands for all users that do not exist.
_Line = tuple[str, str | None]


class PasswordChecks:
    """The checks of one server, those that wait and those under way."""

    def __init__(self, offload: Offload) -> None:
        """`offload` runs a function in a thread."""
        self._offload = offload
        # The checks that wait, by line and password; the first line has its turn next. The same password sent
        # twice is one check.
        self._lines: OrderedDict[_Line, OrderedDict[bytes, _Check]] = OrderedDict()
        self._waiting = 0
        self._running = 0
        # The passwords found right, which are not hashed again: for each hash of the file, a fast digest
        # under a random key that nobody else has.
        self._key = secrets.token_bytes(32)
        self._right: dict[str, bytes] = {}
        # How many passwords came from each address that were not known to be right: lately, and in the period
        # before.
        self._sent: Counter[str] = Counter()
        self._sent_before: Counter[str] = Counter()

    def check(self, address: str, user: User | None, password: bytes, done: Done) -> Callable[[], None]:
        """Check a password that came from `address`, and call `done`, at once if the outcome is known.
        Returns a function that takes the callback back."""
        if user is not None and self._is_known(user, password):
            done(True)
            return lambda: None
        if len(self._sent) >= MAX_ADDRESSES:
            self.forgive()
        self._sent[address] += 1
        key = (address, user.password if user is not None else None)
        line = self._lines.get(key)
        check = line.get(password) if line is not None else None
        if check is None:
            if self._waiting >= MAX_WAITING and not self._make_room(key):
                done(None)
                return lambda: None
            check = _Check(user, password)
            self._lines.setdefault(key, OrderedDict())[password] = check
            self._waiting += 1
        check.callbacks.append(done)
        self._start_next()

        def withdraw() -> None:
            if done in check.callbacks:
                check.callbacks.remove(done)

        return withdraw

    def forget(self) -> None:
        """Forget which passwords were right, for the users have changed."""
        self._right.clear()

    def forgive(self) -> None:
        """Begin a new period: the passwords that an address sent count until the end of the period after."""
        self._sent_before, self._sent = self._sent, Counter()

    def close(self) -> None:
        """Check nothing more."""
        self._lines.clear()
        self._waiting = 0

    def _digest(self, password: bytes) -> bytes:
        return hmac.digest(self._key, password, "sha256")

    def _is_known(self, user: User, password: bytes) -> bool:
        known = self._right.get(user.password)
        return known is not None and hmac.compare_digest(known, self._digest(password))

    def _sent_from(self, line: _Line) -> int:
        """Return how many passwords came lately from the address of a line."""
        return self._sent[line[0]] + self._sent_before[line[0]]

    def _make_room(self, line: _Line) -> bool:
        """Drop the newest check of the line that has the least claim: of the address that sent most, the
        longest. Returns False if that is `line` itself, or one with as much claim."""
        last = max(reversed(self._lines), key=lambda each: (self._sent_from(each), len(self._lines[each])))
        ours = self._sent_from(line), len(self._lines.get(line, ())) + 1
        if (self._sent_from(last), len(self._lines[last])) <= ours:
            return False
        _, check = self._lines[last].popitem()
        if not self._lines[last]:
            del self._lines[last]
        self._waiting -= 1
        check.tell(None)
        return True

    def _start_next(self) -> None:
        while self._lines and self._running < CHECKS:
            key = min(self._lines, key=self._sent_from)
            line = self._lines.pop(key)
            _, check = line.popitem(last=False)
            self._waiting -= 1
            if line:
                self._lines[key] = line
            if check.callbacks:
                self._running += 1
                self._start(check)

    def _start(self, check: _Check) -> None:
        is_right = False

        def work() -> None:
            nonlocal is_right
            is_right = is_password(check.password, None if check.user is None else check.user.password)

        def finished(error: Exception | None) -> None:
            self._running -= 1
            if is_right and check.user is not None:
                self._right[check.user.password] = self._digest(check.password)
            check.tell(None if error is not None else is_right)
            self._start_next()

        self._offload(work, finished)
