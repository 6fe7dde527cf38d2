"""The directory `damaged` of a queue: what is left of damaged items and tables, for whoever can use it."""

import contextlib
import itertools
from pathlib import Path

from darner.journal import sstable
from darner.journal.damaged_record import DamagedRecordError, is_sound
from darner.journal.files import sync_directory, sync_file
from darner.journal.layout import DAMAGED_NAME

# How many damaged records of one look over the tables are put there.
MAX_PUT_RECORDS = 100


def count_quarantined(path: Path) -> tuple[int, int]:
    """Return of how many items, and of how many tables, something lies in the quarantine of a queue's
    directory."""
    try:
        names = {(file.stem, file.suffix == ".ldb") for file in (path / DAMAGED_NAME).iterdir()}
    except OSError:
        return 0, 0
    tables = sum(is_table for _, is_table in names)
    return len(names) - tables, tables


class Quarantine:
    """The quarantine of one queue, and the replacement of damaged tables. Methods raise OSError if something
    cannot be put there.

    `span`: the first and the last key of those tables that were looked over last. `rejected`: the damaged
    records of items found there, by id.
    """

    __slots__ = ("_directory", "_mended", "_path", "_unsynced", "rejected", "span")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._directory = path / DAMAGED_NAME
        self._unsynced: list[Path] = []
        # damaged tables that were replaced since `take_mended` was called
        self._mended: list[Path] = []
        self.span = (b"", b"")
        self.rejected: dict[int, DamagedRecordError] = {}

    def put(self, name: str, content: bytes) -> Path:
        """Write a file of this name and return its path."""
        file = self._directory / name
        file.parent.mkdir(mode=0o700, exist_ok=True)
        file.write_bytes(content)
        self._unsynced.append(file)
        return file

    def move(self, file: Path, name: str) -> Path:
        """Move a file here and return its new path."""
        kept = file.rename(self._directory / name)
        self._unsynced.append(kept)
        return kept

    def link(self, file: Path, name: str) -> None:
        """Give a file a name here as well, if it is there."""
        with contextlib.suppress(OSError):
            (self._directory / name).hardlink_to(file)

    def sync(self) -> None:
        """Sync what was put here; to be called before it is deleted where it was."""
        files, self._unsynced = self._unsynced, []
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                sync_file(file)
        if files:
            with contextlib.suppress(FileNotFoundError):
                sync_directory(self._directory)

    def take_mended(self) -> list[Path]:
        """Return the damaged tables that were replaced since the last call."""
        mended, self._mended = self._mended, []
        return mended

    def look_over(self, tables: bytes, key: bytes, floor: int, next_id: int) -> dict[Path, bytes]:
        """Return the replacements of the damaged ones among LevelDB's tables, by their paths.

        `tables` is LevelDB's list of them; looked over are those in which the first record from `key` on may
        be. Of items, ids from `floor` on may be alive, and none is `next_id` or higher.
        """
        found, last = sstable.list_tables(tables, key)
        replacements = {}
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
                    replacements[path] = mended
        self.span = (key, last)
        self.rejected = rejected
        return replacements

    def replace(self, replacements: dict[Path, bytes]) -> None:
        """Replace damaged tables, which are moved here. LevelDB must be closed."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        for path, content in replacements.items():
            if not path.exists():  # a compaction has made others of it
                continue
            with contextlib.suppress(FileExistsError):  # it was damaged before
                (self._directory / path.name).hardlink_to(path)
            mended = path.with_suffix(".mended")
            mended.write_bytes(content)
            sync_file(mended)
            mended.rename(path)
            self._mended.append(self._directory / path.name)
        for damaged in itertools.islice(self.rejected.values(), MAX_PUT_RECORDS):
            self.put(f"{damaged.id}.record", damaged.record)
        sync_directory(self._directory)
        sync_directory(self._path)
