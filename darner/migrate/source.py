"""What a migration reads: queues of another server, each with its items in their order."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

# Called with a text for each damage that is met. Reading goes on behind it.
OnDamage = Callable[[str], None]


class SourceItem(NamedTuple):
    """An item: its bytes, when it expires and when it was set, in ms of the Unix epoch; 0 is never, and not
    known."""

    data: bytes
    expires_ms: int = 0
    enqueued_ms: int = 0


class Place(NamedTuple):
    """The place of a cursor: how many items it has passed, and which of these it is to read again, each by
    how many items are before it."""

    label: bytes
    passed: int
    again: Sequence[int]


class SourceQueue(Protocol):
    """A queue of the source."""

    @property
    def name(self) -> bytes:
        """Its name, here and there."""

    @property
    def notes(self) -> Sequence[str]:
        """What is to be said of it besides its figures, a sentence each."""

    def items(self, on_damage: OnDamage) -> Iterator[SourceItem]:
        """Yield its items, the oldest first; the same ones each time. Raises OSError."""

    def places(self) -> Sequence[Place]:
        """Return the places of its cursors. Raises OSError."""


class Source(Protocol):
    """The data directory of another server."""

    @property
    def path(self) -> Path:
        """Where it is."""

    def queues(self) -> Sequence[SourceQueue]:
        """Return its queues, by name. Raises OSError."""

    def strays(self) -> Sequence[str]:
        """Return what is there and is no queue, a sentence each, and why it cannot be read. Raises
        OSError."""
