"""A set of an item that comes in chunks: they are gathered, for the cluster takes an item as one message."""

from collections.abc import Callable
from typing import Protocol

from darner.errors import DarnerError
from darner.jetstream.publishing import Set


class Finish(Protocol):
    """Sets the whole item."""

    def __call__(self, data: bytes, flags: int, exptime: int, delay_ms: int, *, sync: bool) -> Set:
        """Return the receipt. Raises DarnerError."""


class ClusterUpload:
    """An item that is being received."""

    __slots__ = ("_chunks", "_finish", "receipt")

    receipt: Set

    def __init__(self, finish: Finish) -> None:
        self._finish = finish
        self._chunks: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Take the next chunk."""
        self._chunks.append(data)

    def is_backlogged(self, room: Callable[[], None]) -> bool:  # noqa: ARG002 -- memory is never slow
        """Return that the sender need not wait."""
        return False

    def finish(
        self,
        flags: int,
        exptime: int,
        done: Callable[[DarnerError | None], None],
        *,
        sync: bool,
        delay_ms: int,
    ) -> None:
        """Set the item, all of whose chunks have come, and call `done`."""
        try:
            self.receipt = self._finish(b"".join(self._chunks), flags, exptime, delay_ms, sync=sync)
        except DarnerError as error:
            done(error)
        else:
            done(None)

    def abandon(self) -> None:
        """Drop what has come."""
        self._chunks.clear()
