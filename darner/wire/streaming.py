"""Large items that are sent to a client slice by slice, once all their bytes were verified."""

from collections.abc import Callable
from typing import Protocol

from darner.errors import JournalError
from darner.journal.blob import BlobReader, MemoryReader

# Reads the bytes of a large item, from a file or from memory.
Reader = BlobReader | MemoryReader


class Delivery(Protocol):
    """What the command that sends a large item does about it."""

    def open(self) -> Reader:
        """Return the bytes. JournalError if they cannot be had."""

    def close(self, reader: Reader) -> None:
        """Close the reader."""

    def begin(self) -> None:
        """Note that the first bytes are about to be sent. JournalError if the item cannot be removed."""

    def give_up(self) -> None:
        """Note that nothing of the item will be sent."""

    def fail(self, error: JournalError) -> None:
        """Put another reply in the place of the item, which cannot be sent."""


class Stream:
    """The reply that is a large item: its header, its bytes, a line end.

    Its bytes are opened when its turn comes, so that those behind it in a pipeline take no descriptor.
    """

    __slots__ = ("_delivery", "_reader", "header")

    def __init__(self, header: bytes, delivery: Delivery) -> None:
        # b"" once it is sent
        self.header = header
        self._delivery = delivery
        self._reader: Reader | None = None

    def begin(self, ready: Callable[[], None]) -> bool:
        """Return whether the item can be sent now; if not, call `ready` when that is to be asked again.
        JournalError if it cannot be sent at all."""
        if self._reader is None:
            self._reader = self._delivery.open()
        if not self._reader.verify(ready):
            return False
        self._delivery.begin()
        return True

    def read(self, ready: Callable[[], None]) -> bytes | None:
        """Return the next bytes, b"" at the end, or None; then `ready` is called when there are some."""
        assert self._reader is not None
        return self._reader.read(ready)

    def fail(self, error: JournalError) -> None:
        """Have another reply sent in place of this one, of which nothing was sent yet."""
        self.close()
        self._delivery.fail(error)

    def abandon(self) -> None:
        """Give up: the client has disconnected."""
        self.close()
        if self.header:
            self._delivery.give_up()

    def close(self) -> None:
        """Close the file, if it is open."""
        reader, self._reader = self._reader, None
        if reader is not None:
            self._delivery.close(reader)
