"""The bytes of one large item, a blob: a file of its own, written and read a few chunks at a time.

The file consists of chunk records, each a checksum and its bytes; all chunks but the last have the same size.
`BlobWriter` and `BlobReader` read and write in other threads, and the calling thread holds no more than a few
chunks. `MemoryWriter` and `MemoryReader` have the same methods, for items of a queue in memory.
"""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from darner import _records
from darner._records import CHUNK_BYTES, Item
from darner.environment.offload import Offload
from darner.errors import DamagedItemError, JournalError
from darner.journal.files import sync_directory, sync_file, sync_name
from darner.journal.leveldb import failure

# How many bytes may wait to be written before the sender has to wait.
MAX_WAITING_BYTES = 128 << 10
# How many bytes are read at once.
SLICE_BYTES = 256 << 10
# How many bytes are verified before others have their turn.
VERIFY_BYTES = 4 << 20
CHECKSUM_BYTES = 4


def file_bytes(item: Item) -> int:
    """Return how many bytes the file of an item's blob has, if it is whole."""
    return item.size + CHECKSUM_BYTES * item.chunks


def write_whole(path: Path, data: bytes) -> None:
    """Write a blob in one go. Raises JournalError."""
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with path.open("wb") as file:
            for at in range(0, len(data), CHUNK_BYTES):
                file.write(_records.encode_chunk(data[at : at + CHUNK_BYTES]))
    except OSError as error:
        raise failure(f"cannot write {path}", error) from error


def read_whole(path: Path, size: int) -> bytes:
    """Return all of a blob of `size` bytes in chunks of CHUNK_BYTES. Raises JournalError if it cannot be
    read, DamagedItemError if it is damaged."""
    try:
        with path.open("rb") as file:
            return b"".join(
                _records.decode_chunk(file.read(min(left, CHUNK_BYTES) + CHECKSUM_BYTES))
                for left in range(size, 0, -CHUNK_BYTES)
            )
    except (OSError, ValueError) as error:
        raise _read_failure(path, error) from error


def _read_failure(path: Path, error: Exception) -> JournalError:
    """Return the error that says why a blob cannot be read: DamagedItemError if that will not pass."""
    is_damage = isinstance(error, ValueError | FileNotFoundError | NotADirectoryError | IsADirectoryError)
    what = f"cannot read {path}"
    return DamagedItemError(f"{what}: {error}") if is_damage else failure(what, error)


class BlobWriter:
    """Writes the chunks of a blob to its file as they come, in another thread."""

    __slots__ = (
        "_chunks", "_error", "_finish", "_is_busy", "_is_over", "_offload", "_on_room", "_path",
        "_waiting_bytes",
    )  # fmt: skip

    def __init__(self, path: Path, offload: Offload) -> None:
        """Create the file. Raises JournalError.

        It is created now, and not in a thread with the first chunk: by then the queue may have been deleted
        and created anew, and the file would be among the new one's. It is open only while something is
        written: whoever stops sending costs no descriptor.
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
        self._is_busy = False
        # whether the file is whole, or deleted
        self._is_over = False
        self._error: JournalError | None = None
        # called when the sender may go on
        self._on_room: Callable[[], None] | None = None
        # when all is written: whether to sync, and what to call
        self._finish: tuple[bool, Callable[[JournalError | None], None]] | None = None

    def write(self, chunk: bytes) -> None:
        """Take the next chunk. Raises JournalError if an earlier one could not be written."""
        if self._error is not None:
            raise self._error
        self._chunks.append(chunk)
        self._waiting_bytes += len(chunk)
        self._continue()

    def must_wait(self, on_room: Callable[[], None]) -> bool:
        """Return whether the sender must wait; `on_room` is called when it may go on."""
        if self._waiting_bytes < MAX_WAITING_BYTES:
            return False
        self._on_room = on_room
        return True

    def finish(self, done: Callable[[JournalError | None], None], *, sync: bool) -> None:
        """Call `done` when all chunks are written, and synced if `sync` says so; or with the error."""
        self._finish = (sync, done)
        self._continue()

    def abandon(self, done: Callable[[], None]) -> None:
        """Delete the file, even if it is whole, and call `done` when that is done."""
        self._error = JournalError("the item was given up")
        self._chunks.clear()
        self._is_over = False
        self._finish = (False, lambda _: done())
        self._continue()

    def _continue(self) -> None:
        """Begin the next step, if none is going on."""
        if self._is_busy:
            return
        if self._is_over:
            finish, self._finish = self._finish, None
            if finish is not None:
                finish[1](self._error)
        elif self._error is not None:
            self._run(self._delete, is_last=True)
        elif self._chunks:
            chunks, self._chunks = self._chunks, []
            self._waiting_bytes = 0
            self._run(lambda: self._write(chunks))
        elif self._finish is not None:
            self._run(self._sync, is_last=True)

    def _run(self, work: Callable[[], None], *, is_last: bool = False) -> None:
        def done(error: Exception | None) -> None:
            self._is_busy = False
            if error is None or self._error is not None:
                self._is_over = is_last
            else:
                self._error = failure(f"cannot write {self._path}", error)
            on_room, self._on_room = self._on_room, None
            if on_room is not None:
                on_room()
            self._continue()

        self._is_busy = True
        self._offload(work, done)

    # In another thread

    def _write(self, chunks: list[bytes]) -> None:
        with open(self._path, "ab", opener=_open_existing) as file:
            file.writelines(map(_records.encode_chunk, chunks))

    def _sync(self) -> None:
        if self._finish is not None and self._finish[0]:
            sync_file(self._path)
            directory = self._path.parent.parent
            sync_directory(self._path.parent)
            sync_directory(directory)
            sync_name(directory)

    def _delete(self) -> None:
        self._path.unlink(missing_ok=True)


def _open_existing(path: str, flags: int) -> int:
    # in the place of a file that is gone with its queue there may be another queue's
    return os.open(path, flags & ~os.O_CREAT)


class BlobReader:
    """Reads a blob slice by slice, in another thread, after verifying all of it if that is asked for.

    A file that is deleted meanwhile is read to its end all the same.
    """

    __slots__ = (
        "_chunk_bytes", "_data", "_error", "_file", "_is_closed", "_left_bytes", "_offload", "_on_ready",
        "_path", "_unverified_bytes", "blob",
    )  # fmt: skip

    def __init__(self, path: Path, item: Item, offload: Offload) -> None:
        """Open the blob of `item`. Raises JournalError if it cannot be opened, DamagedItemError if it is not
        there or has another size."""
        self.blob = item.blob
        self._path = path
        self._offload = offload
        self._chunk_bytes = item.chunk_bytes
        self._left_bytes = item.size
        self._unverified_bytes = item.size
        # the slice that was read
        self._data = b""
        self._error: JournalError | None = None
        # called when the thread has done what it does; None if it does nothing
        self._on_ready: Callable[[], None] | None = None
        self._is_closed = False
        expected = file_bytes(item)
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # to open a pipe might have to be waited for
                raise IsADirectoryError(errno.EISDIR, "it is no file", str(path))
            self._file: BinaryIO = path.open("rb")
        except OSError as error:
            raise _read_failure(path, error) from error
        found = status.st_size
        if found != expected:
            self._file.close()
            raise DamagedItemError(f"{path} is damaged: it has {found} bytes, not {expected}")

    def verify(self, on_ready: Callable[[], None]) -> bool:
        """Return whether the whole blob is verified; if not, `on_ready` is called when to ask again. Nothing
        may be read before.

        Raises DamagedItemError if a chunk fails its checksum, JournalError if the file cannot be read.
        """
        if self._on_ready is not None:
            return False
        if self._error is not None:
            raise self._error
        if not self._unverified_bytes:
            return True
        self._on_ready = on_ready
        self._offload(self._verify_slice, self._done)
        return False

    def read(self, on_ready: Callable[[], None]) -> bytes | None:
        """Return the next bytes, b"" at the end, or None: then `on_ready` is called when there are some.

        Raises JournalError if they cannot be read, DamagedItemError if they fail their checksum. The
        `Offload` of this reader must not have done the work when it returns.
        """
        if self._on_ready is not None:
            return None
        if self._error is not None:
            raise self._error
        data, self._data = self._data, b""
        if self._left_bytes:
            self._on_ready = on_ready
            self._offload(self._read_slice, self._done)
        return data or (None if self._on_ready is not None else b"")

    def close(self) -> None:
        """Close the file, at the end or before."""
        self._is_closed = True
        if self._on_ready is None:
            self._file.close()

    def _done(self, error: Exception | None) -> None:
        if error is not None:
            self._error = _read_failure(self._path, error)
        on_ready, self._on_ready = self._on_ready, None
        if self._is_closed:
            self._file.close()
        elif on_ready is not None:
            on_ready()

    # In another thread

    def _verify_slice(self) -> None:
        if self._left_bytes <= SLICE_BYTES:  # it is kept, and read just once
            self._read_slice()
            self._unverified_bytes = 0
            return
        stop = max(0, self._unverified_bytes - VERIFY_BYTES)
        while self._unverified_bytes > stop:
            take = min(self._unverified_bytes, self._chunk_bytes)
            record = self._file.read(take + CHECKSUM_BYTES)
            _records.check_chunk(record)
            if len(record) != take + CHECKSUM_BYTES:
                raise ValueError("it ends too soon")
            self._unverified_bytes -= take
        if not self._unverified_bytes:
            self._file.seek(0)

    def _read_slice(self) -> None:
        chunks = []
        size = 0
        while self._left_bytes and size < SLICE_BYTES:
            take = min(self._left_bytes, self._chunk_bytes)
            chunks.append(_records.decode_chunk(self._file.read(take + CHECKSUM_BYTES)))
            if len(chunks[-1]) != take:
                raise ValueError("it ends too soon")
            size += take
            self._left_bytes -= take
        self._data = b"".join(chunks)


class MemoryWriter:
    """Collects the chunks of an item of a queue in memory, with the methods of `BlobWriter`."""

    __slots__ = ("_chunks",)

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def write(self, chunk: bytes) -> None:
        """Take the next chunk."""
        self._chunks.append(chunk)

    def must_wait(self, on_room: Callable[[], None]) -> bool:  # noqa: ARG002
        """Return that the sender never has to wait."""
        return False

    def finish(self, done: Callable[[None], None], *, sync: bool) -> None:  # noqa: ARG002
        """Call `done`: all chunks are there."""
        done(None)

    def abandon(self, done: Callable[[], None]) -> None:
        """Forget the chunks, and call `done`."""
        self._chunks.clear()
        done()

    @property
    def data(self) -> bytes:
        """The whole item."""
        return b"".join(self._chunks)


class MemoryReader:
    """Copies an item that is in memory slice by slice, with the methods of `BlobReader`."""

    __slots__ = ("_at", "_bytes")

    def __init__(self, item: Item) -> None:
        assert item.record is not None
        self._bytes = memoryview(item.record)
        self._at = len(item.record) - item.size

    def verify(self, _: Callable[[], None]) -> bool:
        """Return that the item is whole."""
        return True

    def read(self, _: Callable[[], None]) -> bytes:
        """Return the next bytes, b"" at the end."""
        start, self._at = self._at, self._at + SLICE_BYTES
        return self._bytes[start : self._at].tobytes()

    def close(self) -> None:
        """Let go of the item, at the end or before."""
        self._bytes = memoryview(b"")
