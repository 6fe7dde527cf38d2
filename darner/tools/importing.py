"""Importing an exported queue, from a file or a stream.

A file is read from end to end before anything is set. Each item is set with an id that is made of the file's
identity and the item's place in it; a file beside it tells how far the import has come. So one that was cut
off goes on, and doubles nothing: within `dedup_window` the server knows what was set, and later the position
does, except of the last batch.
"""

import secrets
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self
from urllib.parse import unquote_to_bytes

from darner.client import protocol
from darner.client.client import Client
from darner.client.errors import ClientError, ConnectionLostError
from darner.client.pool import Pool
from darner.client.puts import Outcomes, by_home
from darner.client.storing import put_at_home, put_on
from darner.client.windows import Request
from darner.errors import ToolError
from darner.printable import shown
from darner.tools.export_format import FormatError, Header, Reader, Record
from darner.tools.import_position import Position, PositionFile
from darner.tools.queue_settings import seconds, settings_in_force
from darner.tools.server_settings import can_sync
from darner.tools.sets import set_request

_BATCH = 512
_BATCH_BYTES = 1 << 20
# What a server remembers ids for unless it is told otherwise.
_DEFAULT_WINDOW_S = 300.0


@dataclass
class Imported:
    """What an import has done, or found. `earlier`: items that an import before this one has stored."""

    items: int = 0
    bytes: int = 0
    earlier: int = 0
    expired: int = 0
    damaged: int = 0
    unsure: int = 0


class Source:
    """The file that is read, or standard input if `path` is `-`. A context, which closes it.

    `size` is the file's, 0 of what is no file. With `skips_damaged` a damaged record is passed over.
    """

    def __init__(self, path: str, *, skips_damaged: bool = False) -> None:
        """OSError, or FormatError if it is no export; ToolError if a stream is to be searched."""
        self.name = "standard input" if path == "-" else path
        self._skips_damaged = skips_damaged
        with ExitStack() as stack:
            self.file: BinaryIO = (
                sys.stdin.buffer if path == "-" else stack.enter_context(Path(path).open("rb"))
            )
            self.is_file = self.file.seekable()
            if skips_damaged and not self.is_file:
                raise ToolError("--skip-damaged needs a file, not a stream")
            self.size = self.file.seek(0, 2) if self.is_file else 0
            self._begin()
            self._closing = stack.pop_all()

    def _begin(self) -> None:
        if self.is_file:
            self.file.seek(0)
        self.reader = Reader(self.file, self.name)

    @property
    def header(self) -> Header:
        """What the export says of itself."""
        return self.reader.header

    def next(self) -> tuple[int, Record] | None:
        """Return the next item, and where in the file it is; None at the end. FormatError."""
        while True:
            offset = self.reader.offset
            try:
                record = self.reader.next()
            except FormatError as error:
                if not self._skips_damaged:
                    raise
                if not self.reader.skip(error):
                    return None
            else:
                return None if record is None else (offset, record)

    def check(self, on_progress: Callable[[int], None]) -> Imported:
        """Read all of it, and return what an import now would do; then begin again. FormatError."""
        found = Imported()
        now = time.time()
        while (item := self.next()) is not None:
            record = item[1]
            if record.expires_s and record.expires_s <= now:
                found.expired += 1
            else:
                found.items += 1
                found.bytes += len(record.data)
            on_progress(self.reader.offset)
        found.damaged = self.reader.skipped
        self._begin()
        return found

    def go_to(self, position: Position) -> None:
        """Go on at this place."""
        self.file.seek(position.offset)
        reader = self.reader
        reader.offset, reader.number, reader.skipped = position.offset, position.number, position.skipped

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()


class _Placed(NamedTuple):
    """An item, where in the file it is, and where to go on to read it again."""

    place: tuple[int, int, int]
    offset: int
    record: Record


class Import:
    """An import of a source. `queue` is where its items go: that of the export unless it is named."""

    def __init__(
        self, client: Client, source: Source, queue: str | None, path: str, *, again: bool, may_double: bool
    ) -> None:
        """`path` is that of the source. With `again` an import that is done is done once more; with
        `may_double` one goes on though the server may have forgotten what was set last.

        ToolError if that is not asked for and needed; OSError, and the errors of requests.
        """
        self._servers = client.servers
        self._source = source
        self.queue = protocol.queue_key(queue if queue is not None else unquote_to_bytes(source.header.queue))
        self.done = Imported()
        self.warnings: list[str] = []
        self._sync = all(can_sync(client.servers, pool) for pool in client.servers.pools)
        windows = [self._window_s(pool) for pool in client.servers.pools]
        # how long the target remembers ids, in seconds
        self._remembers_s = min(windows)
        if self._remembers_s == 0:
            self.warnings.append(
                f"{shown(self.queue)} does not remember what was set (dedup_window = 0): if the import is"
                " killed, the last batch may be stored twice"
            )
        self._saved: PositionFile | None = None
        self._position = Position(source.header.identity)
        if source.is_file and path != "-":
            names = [str(pool.address) for pool in client.servers.pools]
            self._saved = PositionFile.beside(path, self.queue, names)
            self._go_on(self._saved, again=again, may_double=may_double)

    def _window_s(self, pool: Pool) -> float:
        settings = settings_in_force(pool, self.queue, self._servers.timeout)
        found = None if settings is None else seconds(settings.get("dedup_window"))
        return _DEFAULT_WINDOW_S if found is None else found

    def _go_on(self, saved: PositionFile, *, again: bool, may_double: bool) -> None:
        position = saved.load(self._source.header.identity)
        if position.is_done:
            if not again:
                raise ToolError(
                    f"{self._source.name} was imported into {shown(self.queue)} already, with"
                    f" {position.items} items, as {saved.path} says: --again imports it once more"
                )
            position = Position(position.identity, salt=secrets.token_hex(8))
        ago_s = time.time() - position.time_s
        if not position.is_clean and not may_double and ago_s >= self._remembers_s:
            raise ToolError(
                f"the import was cut off {ago_s:.0f} s ago, and {shown(self.queue)} remembers what was set"
                f" for {self._remembers_s:.0f} s: up to {_BATCH} items after the first {position.items} may"
                " be there or not; --may-double sets them again"
            )
        self._position = position
        self.done.earlier = position.items
        if position.offset:
            self._source.go_to(position)

    def run(self, on_progress: Callable[[int], None], is_stopped: Callable[[], bool]) -> bool:
        """Set the items, until the end, or until `is_stopped`, which is asked between two batches; return
        whether that was all. `on_progress` gets the offset in the source. Raises the first error."""
        position = self._position
        # a kill from here on leaves a batch in doubt
        position.is_clean = False
        self._save()
        try:
            while not (position.is_done or is_stopped()):
                position.is_done = self._put_batch()
                self._save()
                on_progress(self._source.reader.offset)
            position.is_clean = True
        except (ClientError, FormatError):
            position.is_clean = not self.done.unsure
            raise
        finally:
            self.done.damaged = self._source.reader.skipped
            self._save(is_last=True)
        return position.is_done

    def _put_batch(self) -> bool:
        """Set some items; return whether there are no more."""
        batch: list[_Placed] = []
        size = 0
        now = time.time()
        place = self._place()
        damage: FormatError | None = None
        is_over = False
        while len(batch) < _BATCH and size < _BATCH_BYTES and not is_over:
            try:
                item = self._source.next()
            except FormatError as error:
                damage = error  # what came before it is sound
                break
            is_over = item is None
            if item is not None:
                offset, record = item
                if record.expires_s and record.expires_s <= now:
                    self.done.expired += 1
                elif offset not in self._position.ahead:
                    batch.append(_Placed(place, offset, record))
                    size += len(record.data)
            place = self._place()
        if batch:
            self._took(batch, self._put(batch, now))
        self._go_on_at(place)
        if damage is not None:
            raise damage
        return is_over

    def _place(self) -> tuple[int, int, int]:
        reader = self._source.reader
        return reader.offset, reader.number, reader.skipped

    def _go_on_at(self, place: tuple[int, int, int]) -> None:
        position = self._position
        position.offset, position.number, position.skipped = place
        position.ahead = [offset for offset in position.ahead if offset >= position.offset]

    def _put(self, batch: Sequence[_Placed], now: float) -> Outcomes:
        run = (self._position.identity + self._position.salt).encode()
        ids = [b"darner-import-%b-%d" % (run, each.offset) for each in batch]
        requests = [self._request(each.record, id, now) for each, id in zip(batch, ids, strict=True)]
        if self._remembers_s:
            return put_at_home(self._servers, requests, ids)
        # not again, for the server would not know it
        outcomes: Outcomes = [None] * len(requests)
        for home in by_home(self._servers, requests, ids, outcomes):
            with home:
                home.took(put_on(home.pool, home.left(), self._servers.timeout))
        return outcomes

    def _request(self, record: Record, id: bytes, now: float) -> Request:
        left_s = record.expires_s - now if record.expires_s else None
        # The position must not be ahead of the server's disk. A pipeline has one sync for many.
        return set_request(self.queue, record.data, record.flags, left_s, id, sync=self._sync)

    def _took(self, batch: Sequence[_Placed], outcomes: Outcomes) -> None:
        """Count what is stored. Raises the first error; the position is then the item's that has it."""
        failure: ClientError | None = None
        position = self._position
        for each, outcome in zip(batch, outcomes, strict=True):
            if outcome is None:
                self.done.items += 1
                self.done.bytes += len(each.record.data)
                position.items += 1
                if failure is not None:
                    position.ahead.append(each.offset)
                continue
            if failure is None:
                failure = outcome
                self._go_on_at(each.place)
            self.done.unsure += isinstance(outcome, ConnectionLostError)
        if failure is not None:
            raise failure

    def _save(self, *, is_last: bool = False) -> None:
        if self._saved is not None:
            self._saved.save(self._position, is_last=is_last)
