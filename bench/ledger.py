"""A ledger of the items that clients have set and seen, in memory that processes share.

The ledger outlives its clients: each byte is written by one process at a time, so that a client may be killed
at any instruction. A stream is a sequence of items that one client after the other has set, numbered without
a gap.
"""

import mmap
import random
import zlib
from dataclasses import dataclass, field

NONE, SENT, STORED, CUT = range(4)
# The bytes of all items, each cut from another place.
STEP, PLACES = 7919, 4099  # primes: two items in a row never share a place
ITEM_BYTES_MAX = 4 << 20
NOISE = random.Random(0).randbytes(ITEM_BYTES_MAX + PLACES)


class LedgerError(Exception):
    """A server returned an item that it should not have."""


class Number:
    """A number that processes share."""

    def __init__(self) -> None:
        # a cast view writes in one store; struct would write zeros first, which others could read
        self._shared = memoryview(mmap.mmap(-1, 8)).cast("q")

    def get(self) -> int:
        """Return the number."""
        return self._shared[0]

    def set(self, number: int) -> None:
        """Set the number."""
        self._shared[0] = number


class Stream:
    """A sequence of items, and the state of each set: SENT, STORED or CUT."""

    def __init__(self, name: str, capacity: int) -> None:
        self.name = name
        self.states = mmap.mmap(-1, capacity)
        self._begun = Number()

    @property
    def begun(self) -> int:
        """Return the number of sets that were begun."""
        return self._begun.get()

    def begin(self, size: int) -> tuple[int, bytes]:
        """Return the next number and its item, with `size` bytes behind the item's head."""
        number = self._begun.get()
        self.states[number] = SENT
        self._begun.set(number + 1)
        return number, self.item(number, size)

    def stored(self, number: int) -> None:
        """Note that a set was acknowledged."""
        self.states[number] = STORED

    def cut(self) -> None:
        """Note that the client was killed: its last item may have been stored, and may come late."""
        last = self._begun.get() - 1
        if last >= 0 and self.states[last] == SENT:
            self.states[last] = CUT

    def item(self, number: int, size: int) -> bytes:
        """Return the item with this number."""
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
    """The items of a stream, compared with those that its readers have seen."""

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
    """The readers of one stream from one queue.

    With `once` no item may come twice, and each reader that was killed may have taken one that nobody has
    seen. With `in_order` there is one reader at a time.
    """

    def __init__(self, stream: Stream, queue: str, *, once: bool, in_order: bool = False) -> None:
        self.stream, self.queue, self.once, self.in_order = stream, queue, once, in_order
        self.counts = mmap.mmap(-1, len(stream.states))
        self.killed = 0
        self._next = Number()

    @property
    def behind(self) -> int:
        """Return the number of sets begun since the last item seen; for readers in order."""
        return self.stream.begun - self._next.get()

    def see(self, item: bytes) -> None:
        """Note an item that was read; LedgerError if it should not have come."""
        number = self.stream.number(item)
        if self.in_order and self.stream.states[number] != CUT:
            if number < (expected := self._next.get()):
                raise LedgerError(f"{self.queue}: item {number} came where {expected} was due")
            self._next.set(number + 1)
        self.counts[number] = min(self.counts[number] + 1, 255)

    def account(self) -> Account:
        """Compare the items seen with those acknowledged."""
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
