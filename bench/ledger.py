"""What clients have set and seen, kept where it outlives them: in memory that processes share.

A stream is what one client after the other has set, numbered with no gap. Each byte is written by one process
at a time, so that a client may be killed at any instruction.
"""

import mmap
import random
import zlib
from dataclasses import dataclass, field

NONE, SENT, STORED, CUT = range(4)
# The bytes of items are cut from this, each from another place.
STEP, PLACES = 7919, 4099  # primes: many items go by before two are cut from the same place
ITEM_BYTES_MAX = 4 << 20
NOISE = random.Random(0).randbytes(ITEM_BYTES_MAX + PLACES)


class LedgerError(Exception):
    """A server gave what it should not."""


class Number:
    """One number that processes share."""

    def __init__(self) -> None:
        # changed in one store, where struct would write zeros first, for others to see
        self._shared = memoryview(mmap.mmap(-1, 8)).cast("q")

    def get(self) -> int:
        """Return it."""
        return self._shared[0]

    def set(self, number: int) -> None:
        """Change it."""
        self._shared[0] = number


class Stream:
    """Items of one origin: what became of each set."""

    def __init__(self, name: str, capacity: int) -> None:
        self.name = name
        self.states = mmap.mmap(-1, capacity)
        self._begun = Number()

    @property
    def begun(self) -> int:
        """How many were begun."""
        return self._begun.get()

    def begin(self, size: int) -> tuple[int, bytes]:
        """Return the next number and its item, which has `size` bytes behind its head."""
        number = self._begun.get()
        self.states[number] = SENT
        self._begun.set(number + 1)
        return number, self.item(number, size)

    def stored(self, number: int) -> None:
        """Note that it was acknowledged."""
        self.states[number] = STORED

    def cut(self) -> None:
        """Note that whoever sets was killed: what was not acknowledged may be there, and may come late."""
        last = self._begun.get() - 1
        if last >= 0 and self.states[last] == SENT:
            self.states[last] = CUT

    def item(self, number: int, size: int) -> bytes:
        """Return the item of a number."""
        begin = number * STEP % PLACES
        body = NOISE[begin : begin + size]
        return b"%s %d %d " % (self.name.encode(), number, zlib.crc32(body)) + body

    def number(self, item: bytes) -> int:
        """Return the number of an item; LedgerError if it is not as it was set."""
        try:
            name, digits, checksum, body = item.split(b" ", 3)
            number = int(digits)
        except ValueError as error:
            raise LedgerError(f"{self.name}: an item came back changed: {item[:60]!r}") from error
        if name != self.name.encode() or int(checksum) != zlib.crc32(body):
            raise LedgerError(f"{self.name}: an item came back changed: {item[:60]!r}")
        if number >= self.begun or self.states[number] == NONE:
            raise LedgerError(f"{self.name}: item {number} came and was never set")
        return number


@dataclass
class Account:
    """How a stream is held against what its readers have seen."""

    stream: str
    queue: str
    begun: int
    stored: int
    seen: int
    again: int
    lost: int
    may_be_lost: int
    violations: list[str] = field(default_factory=list)


class Readers:
    """Those who read one stream from one queue.

    With `once` no item may come twice, and each reader that was killed may have had one that nobody saw; with
    `in_order` there is one reader at a time.
    """

    def __init__(self, stream: Stream, queue: str, *, once: bool, in_order: bool = False) -> None:
        self.stream, self.queue, self.once, self.in_order = stream, queue, once, in_order
        self.counts = mmap.mmap(-1, len(stream.states))
        self.killed = 0
        self._next = Number()

    @property
    def behind(self) -> int:
        """How many were begun since the last that was seen; for readers in order."""
        return self.stream.begun - self._next.get()

    def see(self, item: bytes) -> None:
        """Note an item; LedgerError if it should not have come."""
        number = self.stream.number(item)
        if self.in_order and self.stream.states[number] != CUT:
            if number < (expected := self._next.get()):
                raise LedgerError(f"{self.queue}: item {number} came where {expected} was due")
            self._next.set(number + 1)
        self.counts[number] = min(self.counts[number] + 1, 255)

    def account(self) -> Account:
        """Hold what was seen against what was acknowledged."""
        begun = self.stream.begun
        states, counts = self.stream.states[:begun], self.counts[:begun]
        missing = [n for n in range(begun) if states[n] == STORED and not counts[n]]
        found = Account(
            self.stream.name,
            self.queue,
            begun,
            stored=states.count(STORED),
            seen=begun - counts.count(0),
            again=sum(count - 1 for count in counts if count > 1),
            lost=len(missing),
            may_be_lost=self.killed if self.once else 0,
        )
        if found.lost > found.may_be_lost:
            found.violations.append(f"{self.queue}: {found.lost} items were lost, the first {missing[:5]}")
        if self.once and found.again:
            found.violations.append(f"{self.queue}: {found.again} items came more than once")
        return found
