"""Exporting a queue of one server to a file, while the queue is in use.

What waits in the queue when it begins is what the file gets, up to the last id there was then. What readers
take before its turn has come is not in it, and neither is what they hold then. A file that was cut off is
gone on with.
"""

import errno
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, Self

from darner.client import protocol
from darner.client.client import Client
from darner.client.errors import BadRequestError, ClientError
from darner.client.servers import Servers
from darner.errors import ToolError
from darner.printable import shown
from darner.tools.emptying import Emptied, Emptying
from darner.tools.export_format import (
    End,
    FormatError,
    Header,
    Reader,
    Record,
    encode_end,
    encode_header,
    encode_item,
)
from darner.tools.holding import WINDOW
from darner.tools.looking import Reading, Waiting

# After so many items it is asked whether to stop.
_ITEMS_BETWEEN = 64


class _Ids:
    """A set of ids that takes little memory where they are next to each other."""

    def __init__(self) -> None:
        self._bits: dict[int, int] = {}

    def add(self, id: int) -> None:
        self._bits[id >> 10] = self._bits.get(id >> 10, 0) | 1 << (id & 1023)

    def __contains__(self, id: int) -> bool:
        return bool(self._bits.get(id >> 10, 0) >> (id & 1023) & 1)


class ExportFile:
    """The file that is written: a new one, or one that was cut off. `-` is standard output.

    `header` is what it begins with. `items` and `bytes` are of what it has, `found` how many of these items
    it had before. A context, which closes it.
    """

    def __init__(self, path: str, header: Header) -> None:
        """ToolError if the file is there, and is whole, or of another queue, or in use; OSError."""
        self.header = header
        self.items = 0
        self.bytes = 0
        self.found = 0
        self.last_id = 0
        self._ids = _Ids()
        self._path = Path(path)
        self._is_stream = path == "-"
        if self._is_stream:
            self._file: BinaryIO = os.fdopen(os.dup(1), "wb")
        else:
            self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        if not self._is_stream:
            self._lock()
            if os.fstat(self._file.fileno()).st_size:
                self._go_on()
                return
        self._file.write(encode_header(self.header))
        self.sync()
        if not self._is_stream:
            directory = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ToolError(f"{self._path} is being written by another export") from None

    def _go_on(self) -> None:
        """Read what the file has, and cut off a part of a record at its end."""
        reader = Reader(self._file, str(self._path))
        new, self.header = self.header, reader.header
        if (self.header.queue, self.header.created_ms) != (new.queue, new.created_ms):
            raise ToolError(f"{self._path} is there, and is an export of another queue: name a new file")
        try:
            while (record := reader.next()) is not None:
                self._count(record.id, len(record.data))
        except FormatError as error:
            if reader.end is not None or (not error.is_cut and reader.skip(error)):
                raise  # damaged, and not just cut off
            self._file.seek(error.offset)
            self._file.truncate()
        else:
            raise ToolError(f"{self._path} is there, and whole, with {self.items} items: name a new file")
        self.found = self.items

    def _count(self, id: int, size: int) -> None:
        self._ids.add(id)
        self.last_id = max(self.last_id, id)
        self.items += 1
        self.bytes += size

    def add(self, items: Sequence[Waiting]) -> None:
        """Write items, except those that the file has. OSError if there is no room."""
        now = time.time()
        for item in items:
            if item.id in self._ids:
                continue
            expires_s = int(now + item.left_s) + 1 if item.left_s >= 0 else 0
            record = Record(item.id, item.attempts, item.flags, expires_s, item.data)
            for part in encode_item(self.header.identity, record):
                self._file.write(part)
            self._count(item.id, len(item.data))

    def sync(self) -> None:
        """Have the disk have what was written."""
        self._file.flush()
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            if not (self._is_stream and error.errno in (errno.EINVAL, errno.EROFS, errno.ENOTSUP)):
                raise

    def end(self) -> None:
        """Write the closing record: now the file is whole."""
        self._file.write(encode_end(self.header.identity, End(self.items, self.bytes)))
        self.sync()

    def close(self) -> None:
        """Close the file as it is."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Export:
    """An export: of what waits in a queue when this is made; `run` does it."""

    window = WINDOW
    # what is written is known
    unsure = 0

    def __init__(self, client: Client, queue: str, path: str, *, removes: bool) -> None:
        """`removes`: items leave the queue, each once the disk has it in the file.

        BadRequestError if that makes no sense, ToolError and OSError as ExportFile, and the errors of
        requests.
        """
        key = protocol.queue_key(queue)
        if client.servers.only is None:
            raise BadRequestError("an export is of one server: name one")
        if removes and path == "-":
            raise BadRequestError("what goes to standard output cannot be synced to a disk: name a file")
        self._servers: Servers = client.servers
        self._pool = client.servers.only
        self._key = key
        self._removes = removes
        self.emptying = Emptying(self._servers, self._pool, key, self, None)
        header = Header(
            identity=secrets.token_hex(16),
            queue=shown(key),
            server=str(self._pool.address),
            created_ms=self.emptying.created_ms,
            last=self.emptying.last,
            began_s=int(time.time()),
        )
        self.file = ExportFile(path, header)
        self._last = self.emptying.last = self.file.header.last

    @property
    def done(self) -> Emptied:
        """How far it has come. Without `removes`, the items are those that were written."""
        return self.emptying.done

    def run(self, on_progress: Callable[[], None], is_stopped: Callable[[], bool]) -> bool:
        """Export until all is in the file, or until `is_stopped`, which is asked between two windows; return
        whether all is. Raises the error that stops it; then, too, the file can be gone on with."""
        with self.file:
            if self._removes:
                self.emptying.run(on_progress, is_stopped)
                is_over = self.emptying.is_over
            else:
                is_over = self._copy(on_progress, is_stopped)
            if is_over:
                self.file.end()
            else:
                self.file.sync()
        return is_over

    def _copy(self, on_progress: Callable[[], None], is_stopped: Callable[[], bool]) -> bool:
        done = self.done
        reading = Reading(self._servers, self._pool, self._key, self.file.last_id + 1, self._last)
        for item in reading.items():
            self.file.add([item])
            done.items += 1
            done.bytes += len(item.data)
            if not done.items % _ITEMS_BETWEEN:
                on_progress()
                if is_stopped():
                    return False
        return True

    def keep(self, items: Sequence[Waiting]) -> list[ClientError | None]:
        """Write items, and have the disk have them."""
        self.file.add(items)
        self.file.sync()
        return [None] * len(items)

    def lost(self, error: ClientError) -> None:
        """Nothing is in doubt: the file knows what it has."""
