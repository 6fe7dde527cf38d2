"""What is damaged in a queue's directory: how it is told, and where what is left of it is put."""

import contextlib
import itertools
from pathlib import Path

from darner import _records
from darner._records import RECORD_HEAD_BYTES
from darner.errors import NewerFormatError
from darner.journal import sstable
from darner.journal.blob import sync_directory, sync_file
from darner.journal.layout import (
    ATTEMPTS_PREFIX,
    CURSOR_PREFIX,
    DAMAGED_NAME,
    DELAYED_KEY,
    EXPIRING_KEY,
    KEPT_KEY,
    is_state_key,
    state_key,
)

# So many records of tables are put aside at a time.
MAX_PUT_ASIDE = 100


def quarantined(path: Path) -> tuple[int, int]:
    """Return of how many damaged items, and of how many tables, something was put aside in a queue's
    directory."""
    try:
        names = {(file.stem, file.suffix == ".ldb") for file in (path / DAMAGED_NAME).iterdir()}
    except OSError:
        return 0, 0
    tables = sum(is_table for _, is_table in names)
    return len(names) - tables, tables


def is_sound(key: bytes, record: bytes) -> bool | None:
    """Whether a record passes its own checksum; None if it has none."""
    try:
        if key[:1] == b"i" and len(key) == 9:
            _records.decode_item(key, record)
        elif key[:1] == b"d" and len(key) == 17:
            _records.decode_item(b"i" + key[9:], record)
        elif is_state_key(key):
            return state_key(_records.decode_state(record).next_id) == key
        elif key[:1] in (CURSOR_PREFIX, ATTEMPTS_PREFIX) or key in (KEPT_KEY, DELAYED_KEY):
            _records.check_chunk(record)
        else:
            return None if key == EXPIRING_KEY or (key[:1] == b"u" and len(key) == 9) else False
    except NewerFormatError:
        return True
    except ValueError:
        return False
    return True


class DamagedRecordError(Exception):
    """The record of an item, at this key, is damaged."""

    def __init__(self, key: bytes, record: bytes, reason: str = "") -> None:
        super().__init__(reason)
        self.key = key
        self.id = int.from_bytes(key[-8:] if key[:1] == b"d" else key[1:9], "big")
        self.record = record

    @property
    def size(self) -> int:
        """How many bytes the item has had, as far as that can be known."""
        if len(self.record) == RECORD_HEAD_BYTES + 20 and self.record[5] == 1:  # they are in a blob
            return int.from_bytes(self.record[RECORD_HEAD_BYTES + 8 : RECORD_HEAD_BYTES + 16], "big")
        return max(0, len(self.record) - RECORD_HEAD_BYTES)

    @property
    def blob(self) -> int:
        """The blob it has had, as far as that can be known; 0 is none."""
        if len(self.record) == RECORD_HEAD_BYTES + 20 and self.record[5] == 1:
            return int.from_bytes(self.record[RECORD_HEAD_BYTES : RECORD_HEAD_BYTES + 8], "big")
        return 0


class Quarantine:
    """The directory `damaged` of a queue. Its methods raise OSError if something cannot be put there."""

    __slots__ = ("_directory", "_mended", "_path", "_unsynced", "rejected", "span")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._directory = path / DAMAGED_NAME
        # files that are not synced, and tables that were mended and nobody was told of
        self._unsynced: list[Path] = []
        self._mended: list[Path] = []
        # the keys between which LevelDB's tables were looked over, and the damaged records found there, by id
        self.span = (b"", b"")
        self.rejected: dict[int, DamagedRecordError] = {}

    def put(self, name: str, content: bytes) -> Path:
        """Write that to a file, which is returned."""
        file = self._directory / name
        file.parent.mkdir(mode=0o700, exist_ok=True)
        file.write_bytes(content)
        self._unsynced.append(file)
        return file

    def move(self, file: Path, name: str) -> Path:
        """Have a file here, and no longer where it was. Returns where."""
        kept = file.rename(self._directory / name)
        self._unsynced.append(kept)
        return kept

    def link(self, file: Path, name: str) -> None:
        """Have a file here as well, if there is one."""
        with contextlib.suppress(OSError):
            (self._directory / name).hardlink_to(file)

    def sync(self) -> None:
        """Have what was put aside on the disk before it goes from where it was."""
        files, self._unsynced = self._unsynced, []
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                sync_file(file)
        if files:
            with contextlib.suppress(FileNotFoundError):
                sync_directory(self._directory)

    def take_mended(self) -> list[Path]:
        """Return the damaged tables that came here since this was asked last."""
        mended, self._mended = self._mended, []
        return mended

    def look_over(self, tables: bytes, key: bytes, floor: int, next_id: int) -> dict[Path, bytes]:
        """Return what is to be in the place of those tables of LevelDB that are damaged, of all that it lists
        those in which the first record from `key` on may be. Of items, ids from `floor` on may be alive, and
        none is `next_id` or higher."""
        found, last = sstable.listed(tables, key)
        sound = {}
        rejected: dict[int, DamagedRecordError] = {}

        def judge(key: bytes, record: bytes) -> bool | None:
            verdict = is_sound(key, record)
            if key[:1] == b"i" and len(key) == 9:
                damaged = DamagedRecordError(key, record)
                if damaged.id >= next_id:  # its checksum does not take in all of the id
                    return False
                if not verdict and damaged.id >= floor:
                    rejected[damaged.id] = damaged
            return verdict

        for number, size in found:
            path = self._path / f"{number:06d}.ldb"
            with contextlib.suppress(FileNotFoundError):  # a compaction has made others of it
                mended = sstable.mend(path.read_bytes(), size, judge)
                if mended is not None:
                    sound[path] = mended
        self.span = (key, last)
        self.rejected = rejected
        return sound

    def replace(self, tables: dict[Path, bytes]) -> None:
        """Put tables in the place of damaged ones, which are put aside. LevelDB must be closed."""
        aside = self._directory
        aside.mkdir(mode=0o700, exist_ok=True)
        for path, content in tables.items():
            if not path.exists():  # a compaction has made others of it
                continue
            with contextlib.suppress(FileExistsError):  # it was damaged before
                (aside / path.name).hardlink_to(path)
            mended = path.with_suffix(".mended")
            mended.write_bytes(content)
            sync_file(mended)
            mended.rename(path)
            self._mended.append(aside / path.name)
        for damaged in itertools.islice(self.rejected.values(), MAX_PUT_ASIDE):
            self.put(f"{damaged.id}.record", damaged.record)
        sync_directory(aside)
        sync_directory(self._path)
