"""The write-ahead log: every change to every queue, in order, until the queue's own LevelDB has it.

Segments, files of one size in one directory, are written through mapped memory: a change is in the log once
it is copied there. That takes no system call, and outlives the process, for the pages are the system's.
`sync` has the disk have them. The room of a segment is reserved when it is made, so that a full disk is met
there, and not by a change. A segment goes, or is used again, once no journal needs it any more.
"""

import contextlib
import mmap
import os
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from darner._proto import Change, Segment, read_segment
from darner.blob import Offload, sync_directory
from darner.errors import JournalError

# Large enough that a busy server begins a few a second, small enough for resident memory: two are mapped.
SEGMENT_BYTES = 4 << 20
# Beyond so many segments the journals that keep the oldest are written out; what a start has to read
# stays small.
LONG_SEGMENTS = 8
# Of Linux: have all pages at hand and writable, which costs a third of meeting them one by one.
MADV_POPULATE_WRITE = 23


class Client(Protocol):
    """Who waits for the disk."""

    def hold(self) -> None:
        """Send nothing until as many `release` calls came."""

    def release(self) -> None:
        """What was held for this once is settled."""

    def fail(self, slot: int, error: JournalError) -> None:
        """What reply `slot` promised did not happen."""


class Life(NamedTuple):
    """What the log knows of one queue, from its first change in there on to its deletion."""

    number: int
    # the number of a change, its kind, and the payload of its frame
    changes: list[tuple[int, int, bytes]]

    @property
    def retired(self) -> bool:
        """Whether it ends with the queue's deletion."""
        ends = (Change.RETIRE, Change.REVIVE)
        return next((kind for _, kind, _ in reversed(self.changes) if kind in ends), None) == Change.RETIRE


class SegmentFile:
    """The file of a segment, and which journals still need it."""

    __slots__ = ("_memory", "descriptor", "number", "path", "pins")

    def __init__(self, path: Path) -> None:
        """Make it, with all its room. Raises OSError if there is none."""
        self.path = path
        self.number = 0
        self.pins: set[Hashable] = set()
        self._memory: mmap.mmap | None = None
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(self.descriptor, 0, SEGMENT_BYTES)
        except OSError:
            self.delete()
            raise

    def map(self) -> mmap.mmap:
        """Return its memory."""
        if self._memory is None:
            self._memory = mmap.mmap(self.descriptor, SEGMENT_BYTES)
            with contextlib.suppress(OSError):  # before Linux 5.14; then each page is met when it is written
                self._memory.madvise(MADV_POPULATE_WRITE)
        return self._memory

    def unmap(self) -> None:
        """Let go of its memory: it counts as this process's as long as it is mapped."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def rename(self, name: str) -> None:
        """Give it another name in its directory."""
        self.path = self.path.rename(self.path.with_name(name))

    def delete(self) -> None:
        """Be rid of it."""
        self.unmap()
        os.close(self.descriptor)
        self.path.unlink(missing_ok=True)


class Log:
    """The log of a data directory."""

    def __init__(self, directory: Path, offload: Offload) -> None:
        """Use `directory`, made if missing. Raises OSError if that is impossible."""
        directory.mkdir(mode=0o700, exist_ok=True)
        self._directory = directory
        self._offload = offload
        self.segment = Segment()
        # called when the log has become long, with the journals that keep its oldest segment
        self.on_long: Callable[[Iterable[Hashable]], None] = lambda _: None
        # oldest first; the last is being written
        self._files: list[SegmentFile] = []
        self._spare: SegmentFile | None = None
        self._making = False
        self._next = 1
        self._numbers = 0
        self._spares = 0
        # files of an earlier process, and for whose sake they are kept
        self._found: list[Path] = []
        self._found_pins: set[Hashable] = set()
        # of what was logged, the segments that are not on the disk
        self._unsynced: list[SegmentFile] = []
        self._waiting: list[tuple[Client, int]] = []
        self._syncing = False
        # the segment whose name is known to be on the disk
        self._placed: SegmentFile | None = None
        # segments of which a sync failed
        self._doubtful: list[SegmentFile] = []

    # Start

    def recover(self) -> tuple[dict[bytes, list[Life]], list[str]]:
        """Read what an earlier process left.

        Returns the lives of each queue named there, oldest first, and what is to be said about damage.
        Raises OSError if it cannot be read.
        """
        lives: dict[bytes, list[Life]] = {}
        damage: list[str] = []
        numbered = []
        for path in self._directory.iterdir():
            if path.name.isdecimal():
                numbered.append((int(path.name), path))
            else:
                path.unlink()
        numbered.sort()
        self._found = [path for _, path in numbered]
        self._next = numbered[-1][0] + 1 if numbered else 1
        for number, path in numbered:
            found, frames, ended = read_segment(path.read_bytes())
            if found != number:
                frames = []
            self._sort(frames, lives)
            if not ended and number + 1 < self._next:
                damage.append(f"{path} breaks off: what was logged after that is lost")
                break
        return lives, damage

    @staticmethod
    def _sort(frames: Iterable[tuple[int, int, int, bytes]], lives: dict[bytes, list[Life]]) -> None:
        entered: dict[int, Life] = {}
        for kind, journal, change, payload in frames:
            if kind == Change.ENTER:
                number = int.from_bytes(payload[:8], "big")
                of_name = lives.setdefault(payload[8:], [])
                if not of_name or of_name[-1].number != number:
                    of_name.append(Life(number, []))
                entered[journal] = of_name[-1]
            else:
                entered[journal].changes.append((change, kind, payload))

    def begin(self, keep: Iterable[Hashable]) -> None:
        """Begin to log; what `recover` read is kept until all in `keep` are unpinned.

        Raises OSError if there is no room.
        """
        self._found_pins = set(keep)
        self._start(SegmentFile(self._spare_path()))
        self._make_spare()
        self._recycle()

    # Logging

    def roll(self) -> None:
        """Go on in a new segment. Raises JournalError if there is none to be had."""
        file, self._spare = self._spare, None
        if file is None:
            try:
                file = SegmentFile(self._spare_path())
            except OSError as error:
                raise JournalError(f"no room for the log in {self._directory}: {error.strerror}") from error
        self.segment.end()
        self._files[-1].unmap()
        self._start(file)
        self._recycle()
        self._make_spare()
        if len(self._files) > LONG_SEGMENTS:
            self.on_long(list(self._files[0].pins))

    def _start(self, file: SegmentFile) -> None:
        file.number = self._next
        self._next += 1
        self.segment.begin(file.map(), file.number)
        file.rename(str(file.number))
        self._files.append(file)
        self._unsynced.append(file)

    def next_number(self) -> int:
        """A number for a journal in the segment now written."""
        self._numbers += 1
        return self._numbers

    def pin(self, journal: Hashable) -> None:
        """Keep the segment now written until `journal` is unpinned."""
        if self._files:  # not yet, while what was found is read
            self._files[-1].pins.add(journal)

    def unpin(self, journal: Hashable, below: int) -> None:
        """`journal` needs no segment whose number is below this one."""
        self._found_pins.discard(journal)
        for file in self._files:
            if file.number < below:
                file.pins.discard(journal)
        self._recycle()

    def _recycle(self) -> None:
        if not self._found_pins:
            for path in self._found:
                path.unlink(missing_ok=True)
            self._found.clear()
        for file in self._files[:-1]:
            if not file.pins:
                self._files.remove(file)
                self._unsynced = [other for other in self._unsynced if other is not file]
                if self._spare is None:
                    file.rename(self._spare_path().name)
                    self._spare = file
                else:
                    file.delete()

    # Room

    def _spare_path(self) -> Path:
        """The path of a segment that has no number yet; each has another."""
        self._spares += 1
        return self._directory / f"spare-{self._spares}"

    def _make_spare(self) -> None:
        """Have a segment ready, made in another thread: the next one, and what room there is when the disk
        is full."""
        if self._spare is not None or self._making:
            return
        self._making = True
        made: list[SegmentFile] = []
        path = self._spare_path()

        def done(error: Exception | None) -> None:
            self._making = False
            if error is not None:
                self.segment.refusal = JournalError(f"no room for the log in {self._directory}: {error}")
            elif self._spare is None:
                self._spare = made[0]
            else:  # one came back meanwhile
                made[0].delete()

        def work() -> None:
            made.append(SegmentFile(path))
            made[0].map()

        self._offload(work, done)

    def tick(self) -> None:
        """Look after the room there is; to be called a few times a second."""
        doubtful = [file for file in self._doubtful if file in self._files]
        self._doubtful = doubtful
        if doubtful:
            self.on_long([pin for file in doubtful for pin in file.pins])
        elif self._spare is not None:
            self.segment.refusal = None
        else:
            self._make_spare()

    # Syncing

    def sync(self, client: Client, slot: int) -> None:
        """Have `client` hold its replies until all that is logged now is on the disk; `fail` tells it if
        that failed, of reply `slot`. However many wait, they share the next sync."""
        client.hold()
        self._waiting.append((client, slot))
        if not self._syncing:
            self._begin_sync()

    def _begin_sync(self) -> None:
        waiting, self._waiting = self._waiting, []
        files = list(self._unsynced)
        place = files[-1] is not self._placed
        self._syncing = True
        for file in files:
            file.pins.add(self)

        def work() -> None:
            for file in files:
                os.fdatasync(file.descriptor)
            if place:
                sync_directory(self._directory)

        def done(error: Exception | None) -> None:
            self._syncing = False
            if error is None:
                self._placed = files[-1]
                self._unsynced = [file for file in self._unsynced if file.number >= files[-1].number]
            else:
                self._doubt(files, error)
            for file in files:
                file.pins.discard(self)
            self._recycle()
            for client, slot in waiting:
                if error is not None:
                    client.fail(slot, JournalError(f"cannot sync the log: {error}"))
                client.release()
            if self._waiting:
                self._begin_sync()

        self._offload(work, done)

    def _doubt(self, files: list[SegmentFile], error: Exception) -> None:
        """After a sync that failed the system takes for written what is not, and a later sync would not
        tell: nothing is taken in until the journals have all that is in these files."""
        self.segment.refusal = JournalError(f"cannot sync the log: {error}")
        self._doubtful += files
        self._unsynced = []
        with contextlib.suppress(JournalError):  # then what comes next meets it
            self.roll()

    def close(self) -> None:
        """Let go of all files. What no journal needs any more is deleted."""
        self.segment.end()
        for file in self._files:
            if file.pins:
                file.unmap()
                os.close(file.descriptor)
            else:
                file.delete()
        if self._spare is not None:
            with contextlib.suppress(OSError):
                self._spare.delete()
