"""The items of a queue as they are to be brought over: those that have not expired, with the times that
darner takes; and a checksum over them."""

import hashlib
import struct
from collections.abc import Iterator

from darner.migrate.source import OnDamage, SourceItem, SourceQueue
from darner.queues.queue import MAX_DATE_MS

# What a checksum takes of an item before its bytes.
_HEAD = struct.Struct("<QQQ")
# Enough to tell any two queues apart.
_DIGEST_BYTES = 16


class Reading:
    """One reading of a queue's items. What had expired at `began_ms` is left out, and counted in
    `expired`."""

    def __init__(self, queue: SourceQueue, began_ms: int, on_damage: OnDamage) -> None:
        self._queue = queue
        self._began_ms = began_ms
        self._on_damage = on_damage
        self.expired = 0

    def __iter__(self) -> Iterator[SourceItem]:
        """Yield the items. Raises as `SourceQueue.items`."""
        for data, expires_ms, enqueued_ms in self._queue.items(self._on_damage):
            if expires_ms and expires_ms <= self._began_ms:
                self.expired += 1
                continue
            since_ms = enqueued_ms if 0 < enqueued_ms < self._began_ms else self._began_ms
            yield SourceItem(data, min(expires_ms, MAX_DATE_MS), since_ms)


class Tally:
    """How many items of a queue were seen, their bytes, and a checksum over all of them."""

    def __init__(self) -> None:
        self.items = self.bytes = 0
        self._checksum = hashlib.blake2b(digest_size=_DIGEST_BYTES)

    def add(self, item: SourceItem) -> None:
        """Count one more item."""
        self.items += 1
        self.bytes += len(item.data)
        self._checksum.update(_HEAD.pack(item.expires_ms, item.enqueued_ms, len(item.data)))
        self._checksum.update(item.data)

    @property
    def checksum(self) -> str:
        """The checksum, in hexadecimal."""
        return self._checksum.hexdigest()
