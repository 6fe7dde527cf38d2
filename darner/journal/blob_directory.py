"""The files of a journal's large items, each a blob by its number, and which of them are to be deleted.

What is in one file is in blob.py. Here it matters whom a file belongs to: a blob is begun before its item is
put, and goes after the item is removed, once LevelDB has that change.
"""

import contextlib
import errno
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from darner._records import Item
from darner.journal.blob import file_bytes
from darner.journal.files import link_or_copy, sync_directory, sync_file
from darner.journal.layout import BLOBS_NAME

# What the system says of a file that can be copied, but not linked: it is on another file system, or that
# has no links.
UNLINKABLE = (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK)


class BlobDirectory:
    """The directory `blobs` of a journal."""

    __slots__ = ("_deleting", "_path", "begun", "obsolete")

    def __init__(self, path: Path, obsolete: Iterable[int] = ()) -> None:
        """`path` is the journal's directory, and `obsolete` are blobs that belong to no item."""
        self._path = path / BLOBS_NAME
        # blobs that belong to no item yet
        self.begun: set[int] = set()
        # blobs to delete, each once LevelDB has the change of this number
        self.obsolete: list[tuple[int, int]] = [(blob, 0) for blob in obsolete]
        # those whose files are being deleted, and whose markers LevelDB still has
        self._deleting: set[int] = set()

    def path_of(self, blob: int) -> Path:
        """Return the file of a blob."""
        return self._path / str(blob)

    @property
    def unowned(self) -> list[int]:
        """The blobs that belong to no item, in order."""
        return sorted(self.begun.union(self._deleting, (blob for blob, _ in self.obsolete)))

    # Making

    def link(self, blob: int, file: Path, copies: list[tuple[Path, Path]] | None) -> None:
        """Make a blob a link to a file, or a copy if that is on another file system. With `copies` it is left
        to the caller to copy: that list gets both paths. Raises OSError."""
        path = self.path_of(blob)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            path.hardlink_to(file)
        except OSError as error:
            if error.errno not in UNLINKABLE:
                raise
            if copies is None:
                shutil.copyfile(file, path)
            else:
                copies.append((file, path))

    def link_anew(self, item: Item, origin: Path) -> bool:
        """Make an item's blob once more from the file that it was linked to, for the link was lost with the
        machine; return whether it is whole then."""
        path = self.path_of(item.blob)
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.unlink(missing_ok=True)
            link_or_copy(origin, path)
        except (OSError, ValueError):
            return False
        return self.is_whole(item)

    def is_whole(self, item: Item) -> bool:
        """Whether the file of a large item has the size that it should have."""
        try:
            return self.path_of(item.blob).stat().st_size == file_bytes(item)
        except OSError:
            return False

    def sync(self, items: Iterable[Item]) -> None:
        """Have the blobs of new items on the disk before the items are. Raises OSError."""
        blobs = [item.blob for item in items if item.blob]
        for blob in blobs:
            with contextlib.suppress(FileNotFoundError):  # found out when it is read
                sync_file(self.path_of(blob))
        if blobs:
            with contextlib.suppress(FileNotFoundError):
                sync_directory(self._path)
            sync_directory(self._path.parent)

    # Deleting

    def take_obsolete(self, stored_change: int) -> list[int]:
        """Return the blobs to delete now that LevelDB has all up to a change: to be deleted, and then
        forgotten or taken back."""
        ripe = [blob for blob, change in self.obsolete if change <= stored_change]
        if ripe:
            self.obsolete = [entry for entry in self.obsolete if entry[1] > stored_change]
            self._deleting.update(ripe)
        return ripe

    def forget(self, blobs: Iterable[int]) -> None:
        """Forget blobs whose files are deleted."""
        self._deleting.difference_update(blobs)

    def take_back_obsolete(self, blobs: Collection[int]) -> None:
        """Take back blobs to delete, for they could not be deleted yet, or were just found."""
        self.forget(blobs)
        self.obsolete += [(blob, 0) for blob in blobs]

    def delete(self, blobs: Iterable[int]) -> None:
        """Delete the files of blobs, so that none comes back with a power cut. OSError if that fails for one;
        the others are deleted. In a thread."""
        failed = None
        for blob in blobs:
            try:
                self.path_of(blob).unlink(missing_ok=True)
            except OSError as error:
                failed = error
        if failed is not None:
            raise failed
        with contextlib.suppress(FileNotFoundError):
            sync_directory(self._path)

    def delete_unknown(self, next_blob: int, known: Collection[int] | None, *, is_recovered: bool) -> None:
        """Delete the files of blobs that were begun in changes lost with the machine: those from `next_blob`
        on, and all but the `known` ones unless that is None. For good, for a later start may give out their
        numbers again. `is_recovered`: an earlier start may have deleted some, and died before that was on
        the disk."""
        with contextlib.suppress(OSError):  # then the next start does it
            to_sync = is_recovered
            for file in self._path.iterdir():
                blob = int(file.name) if file.name.isdecimal() else 0
                if blob >= next_blob or (known is not None and blob not in known):
                    to_sync = True
                    file.unlink()
            if to_sync:
                sync_directory(self._path)
