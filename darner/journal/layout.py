"""The names of what a queue's directory holds: its files, the keys in its LevelDB, and its smallest records.

What the records mean is in docs/design.md, "Records".
"""

from pathlib import Path
from typing import Any

from darner import _records

ATTEMPTS_PREFIX = b"a"
ATTEMPTS_END = b"b"
KEPT_KEY = b"k"
EXPIRING_KEY = b"x"
DELAYED_KEY = b"c"
DEDUP_KEY = b"n"
CURSOR_PREFIX = b"r"
CURSORS_END = b"s"
SETTINGS_KEY = b"s"

# The highest count of attempts that is kept: an item that came back more often has this one.
MAX_ATTEMPTS = 0xFFFF
# The size of the key of a state. It lies among the keys of items, which are shorter.
STATE_KEY_BYTES = 10
# The size of the hash that is kept of the id of a set.
DEDUP_DIGEST_BYTES = 16

BLOBS_NAME = "blobs"
# What is left of damaged items and tables.
DAMAGED_NAME = "damaged"
# The snapshot of a journal at rest, so that a start need not open each LevelDB. It is deleted before LevelDB
# is written to.
STATE_NAME = "state"
# The same of a journal whose LevelDB is open, in case the process is killed. It is not synced, so it counts
# until the machine is started anew; and it, too, is deleted before LevelDB is written to.
SETTLED_NAME = "settled"
# The mark of a journal that is not at rest: the life and the change up to which LevelDB had it on the disk,
# at least. It shows if that was lost.
MARK_NAME = "written"
# An empty file, which shows whether the directory can be written. A kill may leave it.
PROBE_NAME = "room"
# Marks the directory of a deleted queue that could not be moved away: nothing in it counts.
DELETED_NAME = "deleted"
# What a file system has at its root, which may be mounted on a queue's directory.
LOST_FOUND = "lost+found"


def is_known_key(key: bytes) -> bool:
    """Return whether a journal has records with such a key."""
    if key in (KEPT_KEY, EXPIRING_KEY, DELAYED_KEY, DEDUP_KEY, SETTINGS_KEY):
        return True
    sizes = {b"i": (9, 10), ATTEMPTS_PREFIX: (9,), b"u": (9,), b"d": (17,), DEDUP_KEY: (25,)}
    return key.startswith(CURSOR_PREFIX) or len(key) in sizes.get(key[:1], ())


def attempts_key(id: int) -> bytes:
    """Return the key of the count of attempts of the item with this id."""
    return ATTEMPTS_PREFIX + id.to_bytes(8, "big")


def decode_attempts(record: bytes) -> int:
    """Return how often an item has come back. Raises ValueError if the record is damaged."""
    numbers = _records.decode_ids(record)
    if len(numbers) != 1 or numbers[0] > MAX_ATTEMPTS:
        raise ValueError(f"the count of attempts is {numbers}")
    return numbers[0]


def decode_place(record: bytes) -> list[int]:
    """Return the place of a cursor. Raises ValueError if the record is damaged."""
    place = _records.decode_ids(record)
    if not place:
        raise ValueError("the place of a cursor is empty")
    return place


def decode_settings(record: bytes | None) -> bytes:
    """Return what was set for the queue at run time, b"" if there is no record. Raises ValueError if it is
    damaged."""
    return b"" if record is None else _records.decode_chunk(record)


def decode_counts(record: bytes) -> list[int]:
    """Return the four numbers that are kept of delayed items. Raises ValueError if the record is damaged."""
    counts = _records.decode_ids(record)
    if len(counts) != 4:
        raise ValueError(f"the count of delayed items has {len(counts)} numbers")
    return counts


def delayed_key(due_ms: int, id: int) -> bytes:
    """Return the key of a delayed item."""
    return b"d" + due_ms.to_bytes(8, "big") + id.to_bytes(8, "big")


def due_ms_of(key: bytes) -> int:
    """Return when the delayed item with this key is due, as a stamp."""
    return int.from_bytes(key[1:9], "big")


def dedup_key(generation: int, digest: bytes) -> bytes:
    """Return the key of the id of a set, of which this is the hash."""
    return DEDUP_KEY + generation.to_bytes(8, "big") + digest


def decode_stamp(record: bytes) -> int:
    """Return when a set with an id came, as a stamp. Raises ValueError if the record is damaged."""
    numbers = _records.decode_ids(record)
    if len(numbers) != 1 or not numbers[0]:
        raise ValueError("the time of a set is not a number")
    return numbers[0]


def decode_generations(record: bytes) -> list[int]:
    """Return the numbers that are kept of the ids of sets. Raises ValueError if the record is damaged."""
    return check_generations(_records.decode_ids(record))


def check_generations(numbers: list[int]) -> list[int]:
    """Return these numbers if they may be those that are kept of the ids of sets; else raise ValueError."""
    if len(numbers) != 5 or not 0 < numbers[0] <= numbers[1] <= numbers[2]:
        raise ValueError(f"the generations of ids are {numbers}")
    return numbers


def state_key(next_id: int) -> bytes:
    """Return the key of the state that goes with the items before `next_id`: right behind the last of them.

    So the tables of batches that only put items do not overlap, and LevelDB moves them without reading them.
    With one key for all states each table would reach up to it.
    """
    return _records.item_key(next_id - 1) + b"s"


def is_state_key(key: bytes) -> bool:
    """Return whether a key among those of items is the key of a state."""
    return len(key) == STATE_KEY_BYTES


def id_of(key: bytes) -> int:
    """Return the id in a key: of an item, of a state, or of how often an item has come back."""
    return int.from_bytes(key[1:9], "big")


def stored_state(db: Any) -> tuple[bytes, bytes] | None:
    """Return the key and the record of the state in a LevelDB, the last one: earlier ones are dead. None if
    there is no state."""
    last = next(iter(db.iterator(start=b"i", stop=b"j", reverse=True)), None)
    return last if last is not None and is_state_key(last[0]) else None


def may_precede_current(file: Path) -> bool:
    """Return whether a queue's directory may have such a file before LevelDB has made CURRENT, and so before
    there is anything in it."""
    of_leveldb = ("LOCK", "LOG", "LOG.old", "MANIFEST-000001")
    names = (*of_leveldb, BLOBS_NAME, DAMAGED_NAME, PROBE_NAME, DELETED_NAME, LOST_FOUND)
    return file.name in names or file.suffix == ".dbtmp"
