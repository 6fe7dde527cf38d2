"""What the commands of all clients work on: the queues of a data directory, or those of a cluster.

The queues of a data directory answer at once, those of a cluster later. Three ways of answering later are
enough for both, and all are those of a journal that is slower than its clients:

- A set is answered once its `Receipt` lets go of the reply.
- A fetch, and what ends one, raises NotReadyError, and is asked again when what that names is done. What an
  abort leads to is what the reply is held back for.
- What concerns whole queues is done in steps. A step gives what must be done before the next one, or None.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Protocol

from darner.config.settings import QueueSettings
from darner.environment.environment import Environment
from darner.errors import DarnerError, JournalError
from darner.journal.wal_sync import Client
from darner.queues.factory import SettingsSource
from darner.queues.pending import Pending
from darner.queues.queue import Queue
from darner.queues.status import Status
from darner.queues.waiters import Source


class Replier(Client, Protocol):
    """The client of a set."""

    def fail(self, slot: int, error: DarnerError) -> None:
        """Have reply `slot` say why the item is not stored."""


class Receipt(Protocol):
    """A set that was taken in."""

    @property
    def id(self) -> int:
        """The id of the item; 0 if it is not known, or has none yet."""

    def hold(self, client: Replier, slot: int) -> None:
        """Hold reply `slot` of the client until the item is as safe as it was set to be."""


class Upload(Protocol):
    """A set of an item that comes in chunks."""

    @property
    def receipt(self) -> Receipt:
        """The receipt, once `finish` has called `done` without an error."""

    def write(self, data: bytes) -> None:
        """Take the next chunk. Raises DarnerError."""

    def is_backlogged(self, room: Callable[[], None]) -> bool:
        """Return whether the sender must wait; then `room` is called when it may go on."""

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

    def abandon(self) -> None:
        """Drop what has come."""


class Totals(Protocol):
    """Counts over all queues since the start."""

    queue_creates: int
    queue_deletes: int

    @property
    def queue_expires(self) -> int:
        """How many queues ended by their max_queue_age."""

    @property
    def items(self) -> int:
        """How many items were set."""

    @property
    def expired_items(self) -> int:
        """How many items expired before they were fetched."""

    @property
    def discarded_items(self) -> int:
        """How many items were dropped unread by full queues."""

    def waiting(self) -> tuple[int, int, int]:
        """Return how many queues there are, and how many items and bytes wait in them."""


class Configuring(Protocol):
    """Settings of queues that are made at run time."""

    def configure(self, name: bytes, arguments: Sequence[bytes]) -> Iterator[Pending | None]:
        """Change what is set for the queue `name`. Raises ConfigError or UnavailableError."""


class Store(Protocol):
    """All queues.

    `sinks` and `sources` have the queues that a set or a get of that name is served by at once; other names
    are asked for. What raises UnavailableError does so if sets, or fetches, are refused, too.
    """

    sinks: dict[bytes, Queue]
    sources: dict[bytes, Source]
    environment: Environment

    @property
    def status(self) -> Status: ...  # noqa: D102
    @property
    def totals(self) -> Totals: ...  # noqa: D102
    @property
    def configuring(self) -> Configuring: ...  # noqa: D102

    def push(
        self,
        name: bytes,
        record: bytes,
        flags: int,
        exptime: int,
        delay_ms: int = 0,
        dedup_id: bytes | None = None,
        *,
        sync: bool = False,
    ) -> Receipt:
        """Set an item on all queues that a set to `name` goes to. `record` is its data with room before it,
        as the parser gives it. With `sync` it is to survive the death of the machine. Raises DarnerError."""

    def upload(self, name: bytes, size: int, dedup_id: bytes | None) -> Upload:
        """Begin to set an item of `size` bytes that comes in chunks. Raises DarnerError."""

    def source(
        self, name: bytes, *, takes: bool, waits: bool, has_disconnected: Callable[[], bool]
    ) -> Source | None:
        """Return what one fetch by `name` comes from; None if there is no such queue. A client that `takes`
        from a child subscribes to it; one that `waits` may wait for the queue to be made. No item is taken
        for a client that `has_disconnected`. Raises UnavailableError."""

    def settings(self, name: bytes) -> QueueSettings:
        """Return the settings of a queue, or of that of a cursor, whether it exists or not."""

    def steps_to_delete(self, name: bytes) -> Generator[Pending | None, None, bool]:
        """Delete a queue, or drop a cursor's place; returns whether it was there. Raises UnavailableError."""

    def steps_to_flush(self, name: bytes) -> Generator[Pending | None, None, None]:
        """Discard what waits in a queue. Raises UnavailableError."""

    def flush_all(self, errors: list[JournalError]) -> Iterator[Pending | None]:
        """Flush every queue; the errors of those that fail are added to `errors`."""

    def steps_to_flush_expired(self, name: bytes | None) -> Generator[Pending | None, None, int]:
        """Drop what has expired in a queue, or in all; returns how many items that was. Raises
        UnavailableError."""

    def set_status(self, level: int) -> None:
        """Change what clients may do. Raises JournalError."""

    def reconfigure(
        self,
        settings_source: SettingsSource,
        aliases: Mapping[bytes, tuple[bytes, ...]],
        changed: list[bytes],
    ) -> Iterator[None]:
        """Take other settings and aliases from now on; the names that changed are added to `changed`."""

    # Figures

    def steps_to_look(self, names: Sequence[bytes]) -> Iterator[Pending | None]:
        """Bring the figures of these queues, or of all if there are none, up to date."""

    @property
    def out_of_service(self) -> Mapping[bytes, JournalError]:
        """Why each queue that is out of service is so."""

    @property
    def visible(self) -> Mapping[bytes, Any]:
        """The queues of which figures are given, by name."""

    def find_visible(self, name: bytes) -> Any:
        """Return one of the `visible` queues; None if there is none of that name."""

    @property
    def queue_names(self) -> Sequence[bytes]:
        """The names of the queues that exist."""

    def settings_in_force(self, name: bytes) -> QueueSettings | None:
        """Return the settings that a queue was made with, as far as they cannot change; None if there is no
        such queue."""

    @property
    def aliases(self) -> Mapping[bytes, tuple[bytes, ...]]:
        """The names that set to several queues each."""

    def children(self, name: bytes) -> Sequence[bytes]:
        """Return the names of the queues that a set to `name` goes to besides the queue of that name."""

    @property
    def bytes_for_items(self) -> int:
        """How many bytes are free for items."""

    @property
    def refusals(self) -> list[str]:
        """Why sets are refused now on any queue; a stricter status counts from when it is asked for."""

    def reset_stats(self) -> None:
        """Zero what is counted since the start."""
