"""The bytes of one large item: a file of their own, written and read a few chunks at a time.

All reading and writing happens in other threads; the thread that calls holds no more than a few
chunks. A chunk's record is its checksum and its bytes; all chunks but the last have the same size.
"""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

from darner import _records
from darner._records import CHUNK_BYTES, Item
from darner.environment.offload import Offload
from darner.errors import DamagedItemError, JournalError
from darner.journal.leveldb import failure

# How many bytes a sender may have waiting to be written before it has to wait.
CROWDED_BYTES = 128 << 10
# How many bytes are read at once.
SLICE_BYTES = 256 << 10
# How many bytes are found whole at once: others have their turn then.
VERIFY_BYTES = 4 << 20
CHECKSUM_BYTES = 4


class BlobWriter:
    """Writes a blob that comes chunk by chunk."""

    __slots__ = (
        "_busy",
        "_chunks",
        "_error",
        "_finish",
        "_offload",
        "_over",
        "_path",
        "_room",
        "_waiting_bytes",
    )

    def __init__(self, path: Path, offload: Offload) -> None:
        """Make the file. Raises JournalError if that fails.

        At once, and not with the first chunk in a thread: by then the queue may have been deleted and
        made anew, and the file would be among the new one's. It is open only while something is written: who
        sends no more of an item takes no descriptor.
        """
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.open("wb").close()
        except OSError as error:
            raise failure(f"cannot write {path}", error) from error
        self._path = path
        self._offload = offload
        self._chunks: list[bytes] = []
        self._waiting_bytes = 0
        self._busy = False
        # whether the file is whole, or deleted
        self._over = False
        self._error: JournalError | None = None
        self._room: Callable[[], None] | None = None
        # what to do when all is written: with or without a sync, and whom to tell
        self._finish: tuple[bool, Callable[[JournalError | None], None]] | None = None

    def write(self, chunk: bytes) -> None:
        """Take the next chunk. Raises JournalError if an earlier one could not be written."""
        if self._error is not None:
            raise self._error
        self._chunks.append(chunk)
        self._waiting_bytes += len(chunk)
        self._go_on()

    def is_backlogged(self, room: Callable[[], None]) -> bool:
        """Whether the sender should wait; then `room` is called when it may go on."""
        if self._waiting_bytes < CROWDED_BYTES:
            return False
        self._room = room
        return True

    def finish(self, done: Callable[[JournalError | None], None], *, sync: bool) -> None:
        """Call `done` when all chunks are written, with `sync` to the disk itself, or with the error."""
        self._finish = (sync, done)
        self._go_on()

    def abandon(self, done: Callable[[], None]) -> None:
        """Delete what was written, even if it is whole, and call `done` when that is gone for good."""
        self._error = JournalError("the item was given up")
        self._chunks.clear()
        self._over = False
        self._finish = (False, lambda _: done())
        self._go_on()

    def _go_on(self) -> None:
        """Have the next thing done, if nothing is being done."""
        if self._busy:
            return
        if self._over:
            finish, self._finish = self._finish, None
            if finish is not None:
                finish[1](self._error)
        elif self._error is not None:
            self._do(self._delete, last=True)
        elif self._chunks:
            chunks, self._chunks = self._chunks, []
            self._waiting_bytes = 0
            self._do(lambda: self._write(chunks))
        elif self._finish is not None:
            self._do(self._close, last=True)

    def _do(self, work: Callable[[], None], *, last: bool = False) -> None:
        def done(error: Exception | None) -> None:
            self._busy = False
            if error is None or self._error is not None:
                self._over = last
            else:
                self._error = failure(f"cannot write {self._path}", error)
            room, self._room = self._room, None
            if room is not None:
                room()
            self._go_on()

        self._busy = True
        self._offload(work, done)

    # In another thread

    def _write(self, chunks: list[bytes]) -> None:
        with open(self._path, "ab", opener=_existing) as file:
            file.writelines(map(_records.encode_chunk, chunks))

    def _close(self) -> None:
        if self._finish is not None and self._finish[0]:
            sync_file(self._path)
            directory = self._path.parent.parent
            sync_directory(self._path.parent)
            sync_directory(directory)
            sync_name(directory)

    def _delete(self) -> None:
        self._path.unlink(missing_ok=True)


def _existing(path: str, flags: int) -> int:
    # in the place of one that is gone with its queue there may be another queue's
    return os.open(path, flags & ~os.O_CREAT)


def file_bytes(item: Item) -> int:
    """How many bytes the file of an item's blob has, if it is whole."""
    return item.size + CHECKSUM_BYTES * item.chunks


def sync_file(path: Path) -> None:
    """Have the bytes of a file on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_or_copy(file: Path, path: Path) -> None:
    """Have a file under another name, too: without taking room, if the file system can do that. Raises
    FileExistsError if there is one of that name, OSError if it cannot be done."""
    try:
        path.hardlink_to(file)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(file, path)


def replace_file(path: Path, content: bytes) -> None:
    """Have a file with this content on the disk, or the one before as it was; OSError if that fails."""
    new = path.with_name(path.name + ".new")
    try:
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        sync_directory(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise


def read_whole(path: Path, size: int) -> bytes:
    """Return all of a blob of `size` bytes in chunks of CHUNK_BYTES. Raises JournalError if it is not to
    be had; DamagedItemError if it is damaged."""
    try:
        with path.open("rb") as file:
            return b"".join(
                _records.decode_chunk(file.read(min(left, CHUNK_BYTES) + CHECKSUM_BYTES))
                for left in range(size, 0, -CHUNK_BYTES)
            )
    except (OSError, ValueError) as error:
        raise _failure(path, error) from error


def _failure(path: Path, error: Exception) -> JournalError:
    """The error that says why a blob cannot be read, by whether that may pass."""
    is_damage = isinstance(error, ValueError | FileNotFoundError | NotADirectoryError | IsADirectoryError)
    what = f"cannot read {path}"
    return DamagedItemError(f"{what}: {error}") if is_damage else failure(what, error)


def write_whole(path: Path, data: bytes) -> None:
    """Write a blob in one go. Raises JournalError if that fails."""
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with path.open("wb") as file:
            for at in range(0, len(data), CHUNK_BYTES):
                file.write(_records.encode_chunk(data[at : at + CHUNK_BYTES]))
    except OSError as error:
        raise failure(f"cannot write {path}", error) from error


class MemoryWriter:
    """Takes in an item that comes chunk by chunk, for a queue in memory; has what a `BlobWriter` has."""

    __slots__ = ("_chunks",)

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def write(self, chunk: bytes) -> None:
        """Take the next chunk."""
        self._chunks.append(chunk)

    def is_backlogged(self, room: Callable[[], None]) -> bool:  # noqa: ARG002
        """The sender never has to wait."""
        return False

    def finish(self, done: Callable[[None], None], *, sync: bool) -> None:  # noqa: ARG002
        """All chunks have come."""
        done(None)

    def abandon(self, done: Callable[[], None]) -> None:
        """Forget the item."""
        self._chunks.clear()
        done()

    @property
    def data(self) -> bytes:
        """The whole item."""
        return b"".join(self._chunks)


def sync_directory(path: Path) -> None:
    """Have the names of the files in a directory on the disk."""
    sync_file(path)


def sync_name(directory: Path) -> None:
    """Have the name of a queue's directory on the disk."""
    for parent in directory.parents:
        sync_directory(parent)
        if not parent.name.endswith("%"):  # that goes on in a directory inside
            break


def sync_links(paths: Iterable[Path]) -> None:
    """Have files of blobs, and their names, on the disk."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # the item is gone
            sync_file(path)
            for directory in (path.parent, path.parent.parent):
                sync_directory(directory)
            sync_name(path.parent.parent)


class MemoryReader:
    """As `BlobReader`, of an item whose bytes are in memory: they are copied a slice at a time."""

    __slots__ = ("_at", "_bytes")

    def __init__(self, item: Item) -> None:
        assert item.record is not None
        self._bytes = memoryview(item.record)
        self._at = len(item.record) - item.size

    def verify(self, _: Callable[[], None]) -> bool:
        """Return that all bytes are there."""
        return True

    def read(self, _: Callable[[], None]) -> bytes:
        """Return the next bytes, b"" at the end."""
        start, self._at = self._at, self._at + SLICE_BYTES
        return self._bytes[start : self._at].tobytes()

    def close(self) -> None:
        """Done with it, at the end or before."""
        self._bytes = memoryview(b"")


class BlobReader:
    """Reads a blob slice by slice, once all of it was found whole, or at once. It can be read to the end even
    if its file is deleted meanwhile."""

    __slots__ = (
        "_chunk_bytes",
        "_closed",
        "_data",
        "_error",
        "_file",
        "_left",
        "_offload",
        "_path",
        "_ready",
        "_unverified",
        "blob",
    )

    def __init__(self, path: Path, item: Item, offload: Offload) -> None:
        """Open the blob of `item`. Raises JournalError if that cannot be; DamagedItemError if it is not there
        or has another size."""
        self.blob = item.blob
        self._path = path
        self._offload = offload
        self._chunk_bytes = item.chunk_bytes
        self._left = item.size
        # how many bytes are still to be found whole
        self._unverified = item.size
        self._data = b""
        self._error: JournalError | None = None
        # whom to tell when a slice is there; None while none is being read
        self._ready: Callable[[], None] | None = None
        self._closed = False
        expected = file_bytes(item)
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # to open it might have to be waited for
                raise IsADirectoryError(errno.EISDIR, "it is no file", str(path))
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise _failure(path, error) from error
        found = status.st_size
        if found != expected:
            self._file.close()
            raise DamagedItemError(f"{path} is damaged: it has {found} bytes, not {expected}")

    def verify(self, ready: Callable[[], None]) -> bool:
        """Return whether all bytes are whole; False while that is found out: then `ready` is called when it
        goes on. Nothing is to be read before.

        Raises DamagedItemError if they are not, JournalError if they cannot be read.
        """
        if self._ready is not None:
            return False
        if self._error is not None:
            raise self._error
        if not self._unverified:
            return True
        self._ready = ready
        self._offload(self._verify, self._done)
        return False

    def read(self, ready: Callable[[], None]) -> bytes | None:
        """Return the next bytes, b"" at the end, or None: then `ready` is called when there are some.

        Raises JournalError if they cannot be read or fail their checksum. `offload` must not have run
        what it was given when it returns.
        """
        if self._ready is not None:
            return None
        if self._error is not None:
            raise self._error
        data, self._data = self._data, b""
        if self._left:
            self._ready = ready
            self._offload(self._read, self._done)
        return data or (None if self._ready is not None else b"")

    def close(self) -> None:
        """Done with it, at the end or before."""
        self._closed = True
        if self._ready is None:
            self._file.close()

    def _verify(self) -> None:
        if self._left <= SLICE_BYTES:  # it is kept, and read just once
            self._read()
            self._unverified = 0
            return
        stop = max(0, self._unverified - VERIFY_BYTES)
        while self._unverified > stop:
            take = min(self._unverified, self._chunk_bytes)
            record = self._file.read(take + CHECKSUM_BYTES)
            _records.check_chunk(record)
            if len(record) != take + CHECKSUM_BYTES:
                raise ValueError("it ends too soon")
            self._unverified -= take
        if not self._unverified:
            self._file.seek(0)

    def _read(self) -> None:
        chunks = []
        size = 0
        while self._left and size < SLICE_BYTES:
            take = min(self._left, self._chunk_bytes)
            chunks.append(_records.decode_chunk(self._file.read(take + CHECKSUM_BYTES)))
            if len(chunks[-1]) != take:
                raise ValueError("it ends too soon")
            size += take
            self._left -= take
        self._data = b"".join(chunks)

    def _done(self, error: Exception | None) -> None:
        if error is not None:
            self._error = _failure(self._path, error)
        ready, self._ready = self._ready, None
        if self._closed:
            self._file.close()
        elif ready is not None:
            ready()
