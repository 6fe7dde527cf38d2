"""The directory of a queue's journal: its files, and the keys of the records in its LevelDB. What they mean
says journal.py."""

from pathlib import Path
from typing import Any

from darner import _records
from darner.errors import DamagedError, ForeignError
from darner.journal import foreign, snapshot
from darner.journal.leveldb import failure

ATTEMPTS_PREFIX = b"a"
ATTEMPTS_END = b"b"
KEPT_KEY = b"k"
EXPIRING_KEY = b"x"
DELAYED_KEY = b"c"
CURSOR_PREFIX = b"r"
CURSORS_END = b"s"

# An item that has come back more often has come back so often.
MAX_ATTEMPTS = 0xFFFF

BLOBS_NAME = "blobs"
# Where what is left of damaged items is put.
DAMAGED_NAME = "damaged"
# The snapshot of a journal that rests, so that a start need not open each LevelDB. Not there while that is
# written to.
STATE_NAME = "state"
# Of one that does not rest: the life and the change up to which LevelDB has had it on the disk, at least. So
# it is noticed if that is lost.
MARK_NAME = "written"
# What an earlier version tried with whether there was room, and may have left.
PROBE_NAME = "room"
# In a directory that could not be moved away when its queue was deleted: nothing in it counts.
DELETED_NAME = "deleted"
# What a file system has at its root, which may be mounted here.
LOST_FOUND = "lost+found"


def is_known_key(key: bytes) -> bool:
    """Whether a journal has records with such a key."""
    if key in (KEPT_KEY, EXPIRING_KEY, DELAYED_KEY):
        return True
    sizes = {b"i": (9, 10), ATTEMPTS_PREFIX: (9,), b"u": (9,), b"d": (17,)}
    return key.startswith(CURSOR_PREFIX) or len(key) in sizes.get(key[:1], ())


def decode_place(record: bytes) -> list[int]:
    """Return the place of a cursor. ValueError if the record is damaged."""
    place = _records.decode_ids(record)
    if not place:
        raise ValueError("the place of a cursor is empty")
    return place


def decode_counts(record: bytes) -> list[int]:
    """Return what is counted of delayed items. ValueError if the record is damaged."""
    counts = _records.decode_ids(record)
    if len(counts) != 4:
        raise ValueError(f"the count of delayed items has {len(counts)} numbers")
    return counts


def is_unborn(file: Path) -> bool:
    """Whether such a file may be there before CURRENT, so that LevelDB has nothing in there yet."""
    leveldb_has = ("LOCK", "LOG", "LOG.old", "MANIFEST-000001")
    unborn = (*leveldb_has, BLOBS_NAME, DAMAGED_NAME, PROBE_NAME, DELETED_NAME, LOST_FOUND)
    return file.name in unborn or file.suffix == ".dbtmp"


def attempts_key(id: int) -> bytes:
    """The key of how often the item with this id has come back."""
    return ATTEMPTS_PREFIX + id.to_bytes(8, "big")


def decode_attempts(record: bytes) -> int:
    """Return how often an item has come back. ValueError if the record is damaged."""
    numbers = _records.decode_ids(record)
    if len(numbers) != 1 or numbers[0] > MAX_ATTEMPTS:
        raise ValueError(f"the count of attempts is {numbers}")
    return numbers[0]


def state_key(next_id: int) -> bytes:
    """The key of the state that goes with the items before `next_id`: right behind the last of them.

    So the tables of batches that only put items do not overlap, and LevelDB moves them without reading them.
    With one key for all states each table would reach up to it.
    """
    return _records.item_key(next_id - 1) + b"s"


def is_state_key(key: bytes) -> bool:
    """Whether a key between those of items is that of a state."""
    return len(key) == 10


def stored_state(db: Any) -> tuple[bytes, bytes] | None:
    """The key and the record of the state in a LevelDB, or None: the last one; those before it are dead."""
    last = next(iter(db.iterator(start=b"i", stop=b"j", reverse=True)), None)
    return last if last is not None and is_state_key(last[0]) else None


def read_mark(directory: Path) -> tuple[int, int]:
    """The life and the change in the mark of a journal, (0, 0) if there is no sound one: it is not synced."""
    try:
        record = snapshot.read_small(directory / MARK_NAME)
        return (0, 0) if record is None else snapshot.decode_mark(record)
    except (OSError, ValueError):
        return 0, 0


def check_empty(db: Any) -> None:
    """Raise if a LevelDB without a state has anything else: ForeignError if that is none of a journal's, else
    ValueError."""
    first = next(iter(db.iterator(include_value=False)), None)
    if first is not None and not is_known_key(first):
        raise ForeignError("it is a LevelDB, and no journal of darner")
    if first is not None:
        raise ValueError("it has records but no state: it is damaged or no journal of darner")


def delayed_key(due_ms: int, id: int) -> bytes:
    """The key of a delayed item."""
    return b"d" + due_ms.to_bytes(8, "big") + id.to_bytes(8, "big")


def due_ms_of(key: bytes) -> int:
    """When the delayed item with this key is due."""
    return int.from_bytes(key[1:9], "big")


def is_new(path: Path) -> bool:
    """Whether a journal is to begin in this directory. JournalError if it has something else than one."""
    # With create_if_missing LevelDB takes a directory without CURRENT for a new one and deletes the
    # tables in it (seen in 1.22 and 1.23): only an absent or empty one is new, or one whose making
    # was cut off, by a full disk or a kill.
    try:
        files = list(path.iterdir()) if path.exists() else []
    except NotADirectoryError:
        raise ForeignError(f"{path} is a file, and no directory of a queue") from None
    except OSError as error:
        raise failure(f"cannot open {path}", error) from error
    if all(map(is_unborn, files)):
        return True
    if (path / "CURRENT").is_file():
        return False
    check_whose(path)
    if any(foreign.is_of_leveldb(file.name) for file in files):
        raise DamagedError(f"{path} holds files but no CURRENT. Nothing in it was touched")
    raise ForeignError(f"{path} holds files but no CURRENT, and none of a journal")


def check_whose(path: Path) -> None:
    """Raise ForeignError if a directory is known as one of another program."""
    if whose := foreign.whose(path):
        raise ForeignError(f"{path} is {whose}")
