"""The data directory of siberite: for each queue a directory with a LevelDB of Go of the same name.

Its keys are the ids of items, eight bytes, big-endian. Beside it the LevelDB `_.metadata` has the cursors,
which siberite calls consumer groups: `_c:GROUP` is the id that a group has read last, and behind `_r:GROUP:`
are the items that its readers have failed to handle, as copies. Before 0.5 a queue was the LevelDB alone. The
source of siberite (bogdanovich/siberite, queue/queue.go and cgroup/cgroup.go) is the description.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from darner._proto import valid_name
from darner.migrate.leveldb_files import LevelDb
from darner.migrate.source import OnDamage, Place, SourceItem, SourceQueue

METADATA = "_.metadata"
_CURSOR, _FAILED = b"_c:", b"_r:"
_ID_BYTES = 8


def _order(key: bytes) -> bytes:
    return key


def _is_leveldb(directory: Path) -> bool:
    return (directory / "CURRENT").exists()


def _ignore(_: str) -> None:
    """Let damage go that was told when the items were read."""


class SiberiteQueue:
    """A queue of siberite."""

    def __init__(self, directory: Path) -> None:
        self.name = os.fsencode(directory.name)
        self.notes: list[str] = []
        inside = directory / directory.name
        self._items = directory if _is_leveldb(directory) and not _is_leveldb(inside) else inside
        self._places: list[Place] = []
        # items that readers of a cursor have failed to handle, and that are no longer in the queue, by cursor
        self.left_over: dict[bytes, list[bytes]] = {}
        if _is_leveldb(directory / METADATA):
            self._read_cursors(directory / METADATA)

    def items(self, on_damage: OnDamage) -> Iterator[SourceItem]:
        """Yield its items. Raises MigrationError if it cannot be read at all, OSError."""
        for _, data in self._records(on_damage):
            yield SourceItem(data)

    def places(self) -> Sequence[Place]:
        """Return the places of its cursors."""
        return self._places

    def _records(self, on_damage: OnDamage) -> Iterator[tuple[int, bytes]]:
        if not self._items.exists() or not any(self._items.iterdir()):
            return
        for key, data in LevelDb(self._items, _order, on_damage).records():
            if len(key) == _ID_BYTES:
                yield int.from_bytes(key, "big"), data
            else:
                on_damage(f"{self._items} has a key that is none of an item")

    def _read_cursors(self, metadata: Path) -> None:
        read: dict[bytes, int] = {}
        failed: dict[bytes, list[bytes]] = {}
        for key, value in LevelDb(metadata, _order, self.notes.append).records():
            if key.startswith(_CURSOR):
                read[key.removeprefix(_CURSOR)] = int.from_bytes(value, "big")
            elif key.startswith(_FAILED):
                failed.setdefault(key.removeprefix(_FAILED)[: -_ID_BYTES - 1], []).append(value)
        for label in [label for label in read if not valid_name(label)]:
            del read[label]
            self.notes.append("a cursor without a name is left out")
        if read:
            self._find_places(read, {label: failed.get(label, []) for label in read})

    def _find_places(self, read: dict[bytes, int], failed: dict[bytes, list[bytes]]) -> None:
        """Find where the cursors are among the items, and which of these the failed ones are."""
        wanted = {label: Counter(map(_digest, items)) for label, items in failed.items()}
        passed = dict.fromkeys(read, 0)
        again: dict[bytes, list[int]] = {label: [] for label in read}
        for at, (id, data) in enumerate(self._records(_ignore)):
            digest = _digest(data) if any(wanted.values()) else b""
            for label, last in read.items():
                if id > last:
                    continue
                passed[label] += 1
                if wanted[label][digest] > 0:
                    wanted[label][digest] -= 1
                    again[label].append(at)
        self._places = [Place(label, passed[label], again[label]) for label in read]
        for label, items in failed.items():
            left = [data for data in items if _take(wanted[label], _digest(data))]
            if left:
                self.left_over[label] = left
        for label, place in zip(read, self._places, strict=True):
            self.notes.append(
                f"the cursor {label.decode(errors='replace')} has read {place.passed} of its items"
                + (f", and is to read {len(place.again)} of these again" if place.again else "")
            )


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _take(counts: Counter[bytes], digest: bytes) -> bool:
    """Return whether one is left of these, and take it."""
    if counts[digest] <= 0:
        return False
    counts[digest] -= 1
    return True


class LeftOver:
    """What readers of a cursor have failed to handle, and is no longer in the queue: a queue of its own, with
    the name that the cursor had at siberite."""

    def __init__(self, queue: bytes, label: bytes, items: Sequence[bytes]) -> None:
        self.name = queue + b"." + label
        self.notes = [
            f"they are what readers of the cursor {label.decode(errors='replace')} had failed to handle"
        ]
        self._items = items

    def items(self, on_damage: OnDamage) -> Iterator[SourceItem]:  # noqa: ARG002
        """Yield the items."""
        return map(SourceItem, self._items)

    def places(self) -> Sequence[Place]:
        """Return none."""
        return ()


class Siberite:
    """The data directory of siberite."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def queues(self) -> Sequence[SourceQueue]:
        """Return its queues: to siberite each directory is one. Raises MigrationError if the cursors of one
        cannot be read."""
        queues: list[SourceQueue] = []
        for entry in sorted(self.path.iterdir()):
            if entry.is_dir():
                queue = SiberiteQueue(entry)
                queues += [queue, *(LeftOver(queue.name, *each) for each in queue.left_over.items())]
        return queues

    def strays(self) -> Sequence[str]:
        """Return what is no directory."""
        return [
            f"{entry} is no directory of a queue"
            for entry in sorted(self.path.iterdir())
            if not entry.is_dir()
        ]
