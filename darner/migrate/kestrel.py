"""The data directory of Kestrel, 2.1 to 2.4: for each queue a journal, which is all that has happened to it.

A journal may be in several files: `work.TIME`, the older ones, are played back before `work`.
`work.TIME.pack` stands for itself and all that are not later. Files with `~~` in their names were not
finished. The directory is described in Kestrel's docs/journal_format.md, and the records of transactions that
it leaves out in its source (twitter-archive/kestrel, Journal.scala). Kestrel 3 has another format.
"""

import itertools
import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from darner.errors import MigrationError
from darner.migrate.source import OnDamage, Place, SourceItem

# The kinds of records.
ADD, REMOVE, ADDX, REMOVE_TENTATIVE, SAVE_XID = range(5)
UNREMOVE, CONFIRM_REMOVE, ADD_XID, CONTINUE, REMOVE_XID = range(5, 10)
_ADDS = frozenset((ADD, ADDX, ADD_XID, CONTINUE))
# Those that have the number of a transaction, right behind their kind.
_NUMBERED = frozenset((SAVE_XID, UNREMOVE, CONFIRM_REMOVE, ADD_XID, CONTINUE, REMOVE_XID))
_INT = struct.Struct("<i")
# When an item was set, and when it expires, in ms; of an ADD only the latter, in seconds.
_TIMES = struct.Struct("<qq")
# How much is read at once.
_BUFFER_BYTES = 1 << 20
# How far behind damage the next record is looked for at once, and in which times one may have been written.
_SEARCH_BYTES = 1 << 20
_TIMES_MS = range(1_000_000_000_000, 4_000_000_000_000)
_LATER_HEADS = (b"\x27\x64\x26\x03", b"\x26\x3c\x26\x03")
# A file of a journal: the queue, and when it was put aside. The one that is written to has no time.
_FILE = re.compile(r"([^./~]+)(?:\.(\d+)(?:\.pack)?)?")
PACK = ".pack"
_PRESENT = 1 << 64


class _Item(NamedTuple):
    """Where the bytes of an item are: in which file of the journal, at which byte, how many; its times; and
    its transaction, if it was written in one."""

    file: int
    offset: int
    size: int
    enqueued_ms: int
    expires_ms: int
    xid: int


class _Record(NamedTuple):
    """One thing that has happened to a queue. `item`: that which was added."""

    kind: int
    xid: int
    item: _Item | None


class _Damage(Exception):  # noqa: N818  # it is no error to go on with
    """What is at a place is no record. `is_cut`: it would be one if the file went on."""

    def __init__(self, *, is_cut: bool) -> None:
        super().__init__()
        self.is_cut = is_cut


def _read(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise _Damage(is_cut=True)
    return data


def _read_record(file: BinaryIO, number: int, end: int) -> tuple[_Record, int]:
    """Return the record at which the file is, and where the next one begins. Raises _Damage."""
    kind = _read(file, 1)[0]
    if kind > REMOVE_XID:
        raise _Damage(is_cut=False)
    xid = _INT.unpack(_read(file, 4))[0] if kind in _NUMBERED else 0
    item = None
    if kind in _ADDS:
        size = _INT.unpack(_read(file, 4))[0]
        if size < (4 if kind == ADD else _TIMES.size):
            raise _Damage(is_cut=False)
        if kind == ADD:
            enqueued, expires = 0, _INT.unpack(_read(file, 4))[0] * 1000
        else:
            enqueued, expires = _TIMES.unpack(_read(file, _TIMES.size))
        size -= 4 if kind == ADD else _TIMES.size
        item = _Item(number, file.tell(), size, enqueued, expires, xid if kind == ADD_XID else 0)
        if item.offset + size > end:
            raise _Damage(is_cut=True)
        return _Record(kind, xid, item), item.offset + size
    return _Record(kind, xid, None), file.tell()


def _find_record(file: BinaryIO, start: int, end: int) -> int:
    """Return where the next item begins that was certainly set, from `start` on; -1 if there is none."""
    at = start
    while at < end:
        file.seek(at)
        data = file.read(_SEARCH_BYTES)
        found = data.find(ADDX)
        while found >= 0:
            size, enqueued, expires = 0, 0, 0
            if found + 5 + _TIMES.size <= len(data):
                size = _INT.unpack_from(data, found + 1)[0]
                enqueued, expires = _TIMES.unpack_from(data, found + 5)
            is_dated = enqueued in _TIMES_MS and (expires == 0 or expires in _TIMES_MS)
            if is_dated and _TIMES.size <= size <= end - at - found - 5:
                return at + found
            found = data.find(ADDX, found + 1)
        at += max(1, len(data) - 5 - _TIMES.size)
    return -1


class _Teller:
    """Tells of damage in the files of a journal."""

    def __init__(self, paths: Sequence[Path], on_damage: OnDamage, on_cut: OnDamage) -> None:
        """`on_cut` is told of a last record that is not whole, as a kill leaves it."""
        self._paths = paths
        self._on_damage = on_damage
        self._on_cut = on_cut
        # whether anything is damaged: what was removed after that is not known
        self.has_told = False

    def tell(self, number: int, file: BinaryIO, at: int, after: int, *, is_cut: bool) -> None:
        """Tell that the bytes from `at` to `after` of a file are no records; `is_cut`: they may be the
        beginning of one."""
        path = self._paths[number]
        is_last = number == len(self._paths) - 1 and after == os.fstat(file.fileno()).st_size
        if is_last and (is_cut or _has_zeros_from(file, at)):
            self._on_cut(f"{path} ends in {after - at} bytes that are no whole record, as a kill leaves it")
            return
        self.has_told = True
        self._on_damage(
            f"{path} is damaged at byte {at}: {after - at} bytes are left out, and what was fetched after"
            " that may come over all the same"
        )


def _has_zeros_from(file: BinaryIO, at: int) -> bool:
    file.seek(at)
    while data := file.read(_SEARCH_BYTES):
        if data.strip(b"\0"):
            return False
    return True


def _read_all(paths: Sequence[Path], teller: _Teller) -> Iterator[tuple[_Record, BinaryIO]]:
    """Yield the records of a journal, each with the file it is in. Whoever takes one may read its item."""
    for number, path in enumerate(paths):
        with path.open("rb", buffering=_BUFFER_BYTES) as file:
            end = os.fstat(file.fileno()).st_size
            at = 0
            while at < end:
                file.seek(at)
                try:
                    record, after = _read_record(file, number, end)
                except _Damage as damage:
                    found = _find_record(file, at + 1, end)
                    after = found if found >= 0 else end
                    teller.tell(number, file, at, after, is_cut=damage.is_cut and found < 0)
                else:
                    yield record, file
                at = after


def _ignore(_: str) -> None:
    """Let go what was told before."""


class _Replay:
    """What a journal comes to. Items are taken in the order in which they were set, so their number tells
    which are left; only those in transactions, and those that have come back from one, are kept in memory."""

    def __init__(self, paths: Sequence[Path], teller: _Teller) -> None:
        """Play the journal back. Raises OSError."""
        self._teller = teller
        # how many items were set, and how many of these were taken
        self._set = self.taken = 0
        # those that came back, the one at the head last; and those that a client has, by transaction
        self.returned: list[_Item] = []
        self._open: dict[int, _Item] = {}
        self._last_xid = 0
        # goes behind the records, over the items that are taken
        again = _read_all(paths, _Teller(paths, _ignore, _ignore))
        self._following = (record.item for record, _ in again if record.item is not None)
        for record, _ in _read_all(paths, teller):
            self._play(record)
        # what clients had when the server ended comes back
        self.returned += [self._open[xid] for xid in sorted(self._open, reverse=True)]

    def _play(self, record: _Record) -> None:
        kind, xid, item = record
        if item is not None:
            self._set += 1
        if self._teller.has_told:
            return
        if kind == REMOVE:
            self._take()
        elif kind == REMOVE_XID:
            self._reserve(self._take(), xid)
        elif kind == REMOVE_TENTATIVE:
            taken = self._take()
            self._reserve(taken, taken.xid if taken is not None and taken.xid else self._next_xid())
        elif kind == SAVE_XID:
            self._last_xid = xid
        elif kind == UNREMOVE:
            returned = self._open.pop(xid, None)
            if returned is not None:
                self.returned.append(returned)
        elif kind in (CONFIRM_REMOVE, CONTINUE):
            self._open.pop(xid, None)

    def _take(self) -> _Item | None:
        """Take the item at the head, None if there is none."""
        if self.returned:
            return self.returned.pop()
        if self.taken == self._set:
            return None
        self.taken += 1
        return next(self._following)

    def _reserve(self, item: _Item | None, xid: int) -> None:
        self._last_xid = xid
        if item is not None:
            self._open[xid] = item

    def _next_xid(self) -> int:
        """Return the number of a transaction that has none in the journal, as those before 2.1 had none."""
        xid = self._last_xid + 1
        while xid in self._open or xid == 0:
            xid += 1
        return xid


class KestrelQueue:
    """A queue of Kestrel. `paths`: the files of its journal, the oldest first."""

    def __init__(self, name: bytes, paths: Sequence[Path]) -> None:
        self.name = name
        self.notes: list[str] = []
        self._paths = paths

    def items(self, on_damage: OnDamage) -> Iterator[SourceItem]:
        """Yield its items. Raises MigrationError if the journal is of Kestrel 3, OSError."""
        for path in self._paths:
            with path.open("rb") as file:
                if file.read(len(_LATER_HEADS[0])) in _LATER_HEADS:
                    raise MigrationError(f"{path} is a journal of Kestrel 3, which has another format")
        replay = _Replay(self._paths, _Teller(self._paths, on_damage, self._note))
        for item in reversed(replay.returned):
            with self._paths[item.file].open("rb") as file:
                yield _load(file, item)
        again = _read_all(self._paths, _Teller(self._paths, _ignore, _ignore))
        added = ((record.item, journal) for record, journal in again if record.item is not None)
        for item, journal in itertools.islice(added, replay.taken, None):
            yield _load(journal, item)

    def places(self) -> Sequence[Place]:
        """Return none: Kestrel has no cursors."""
        return ()

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _load(file: BinaryIO, item: _Item) -> SourceItem:
    file.seek(item.offset)
    return SourceItem(file.read(item.size), item.expires_ms, item.enqueued_ms)


class Kestrel:
    """The data directory of Kestrel."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def queues(self) -> Sequence[KestrelQueue]:
        """Return its queues."""
        found: dict[str, list[tuple[int, Path]]] = {}
        for entry in sorted(self.path.iterdir()):
            named = _FILE.fullmatch(entry.name)
            if named is not None and entry.is_file():
                time = int(named[2]) if named[2] else _PRESENT
                found.setdefault(named[1], []).append((time, entry))
        return [KestrelQueue(os.fsencode(name), _in_order(files)) for name, files in sorted(found.items())]

    def strays(self) -> Sequence[str]:
        """Return what Kestrel would take for no journal, or for one that it cannot read."""
        return [
            f"{entry} is no journal"
            for entry in sorted(self.path.iterdir())
            if not (entry.is_file() and (_FILE.fullmatch(entry.name) or "~~" in entry.name))
        ]


def _in_order(files: list[tuple[int, Path]]) -> list[Path]:
    """Return the files to be played back, the oldest first: not those that a pack stands for."""
    packed = max((time for time, path in files if path.suffix == PACK), default=-1)
    kept = [(time, path) for time, path in files if time > packed or (time == packed and path.suffix == PACK)]
    return [path for _, path in sorted(kept)]
