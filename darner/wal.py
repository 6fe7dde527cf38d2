"""The write-ahead log: every change to every queue, in order, until the queue's own LevelDB has it.

Segments, files of one size in one directory, are written through mapped memory: a change is in the log once
it is copied there. That takes no system call, and outlives the process, for the pages are the system's.
`sync` has the disk have them. The room of a segment is reserved when it is made, so that a full disk is met
there, and not by a change. A segment goes, or is used again, once no journal needs it any more.

A start reads the segments that are there, the found ones, up to the first that breaks off, and ends that one
where it does, on the disk: what is logged from then on builds on just that, and so does each later start.
"""

import contextlib
import mmap
import os
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from darner._proto import Change, Segment, populate, read_segment
from darner.blob import Offload, sync_directory
from darner.errors import JournalError

# Large enough that a busy server begins a few a second, small enough for resident memory: two are mapped.
SEGMENT_BYTES = 4 << 20
# Beyond so many segments the journals that keep the oldest are written out; what a start has to read
# stays small.
LONG_SEGMENTS = 8
# How many that nobody needs any more are kept to be used again, without being mapped, as long as the log is
# written to: to make a new one each time costs a tenth of what a busy server does.
RESERVE = 3
# A segment without a number is being made, or ready to be used. One that comes after a break is kept for
# whoever may want to look into it.
SPARE_PREFIX = "spare-"
LOST_PREFIX = "lost-"
# What a change takes in a segment besides an item's bytes: its head, the record's, and those of an ENTER with
# the longest name.
GROUP_BYTES = 400
# What a segment is pinned by that must outlast the found ones.
FOUND = "found"


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
    """The file of a segment, which journals still need it, and which lives it tells of."""

    __slots__ = ("_memory", "descriptor", "leaving", "lives", "number", "path", "pins")

    def __init__(self, path: Path) -> None:
        """Make it, with all its room. Raises OSError if there is none."""
        self.path = path
        self.number = 0
        self.pins: dict[Hashable, None] = {}
        self.lives: set[int] = set()
        # whether it is being deleted, or made the spare one
        self.leaving = False
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
            populate(self._memory)
        return self._memory

    def let_go(self) -> None:
        """Have its pages be the system's alone until they are written to again."""
        if self._memory is not None:
            self._memory.madvise(mmap.MADV_DONTNEED)

    def unmap(self) -> None:
        """Let go of its memory: it counts as this process's as long as it is mapped."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def rename(self, name: str) -> None:
        """Give it another name in its directory."""
        self.path = self.path.rename(self.path.with_name(name))

    def close(self) -> None:
        """Leave it to the next start."""
        self.unmap()
        os.close(self.descriptor)

    def delete(self) -> None:
        """Be rid of it. OSError if that fails; then it is as it was."""
        self.path.unlink(missing_ok=True)
        self.close()


class FoundSegment(NamedTuple):
    """A segment as a start has found it."""

    number: int
    path: Path
    # as `read_segment` gives them
    frames: list[tuple[int, int, int, bytes]]
    used_bytes: int
    ended: bool


class Log:
    """The log of a data directory."""

    def __init__(self, directory: Path, offload: Offload) -> None:
        """Use `directory`, made if missing. Raises OSError if that is impossible."""
        directory.mkdir(mode=0o700, exist_ok=True)
        sync_directory(directory.parent)
        self._directory = directory
        self._offload = offload
        self.segment = Segment()
        # called when the log has become long, with the journals that keep its oldest segment
        self.on_long: Callable[[Iterable[Hashable]], None] = lambda _: None
        # called when there is no room for a segment; returns whether there is now
        self.on_full: Callable[[OSError], bool] = lambda _: False
        # whether room is short, so that it is to be no longer than it must
        self.is_short = False
        # how many journals have a number in the segment now written
        self.entered = 0
        # up to where the log is on the disk
        self.synced = (0, 0)
        # oldest first; the last is being written
        self._files: list[SegmentFile] = []
        # the next one, mapped, and whether one is being made that
        self._spare: SegmentFile | None = None
        self._making = False
        # used ones that will be it, and how many more will be such
        self._reserve: list[SegmentFile] = []
        self._returning = 0
        self._next = 1
        self._spares = 0
        # files of an earlier process, oldest first, for whose sake they are kept, and what lives they tell of
        self._found: list[Path] = []
        self._found_pins: set[Hashable] = set()
        self._found_lives: set[int] = set()
        self._begun = False
        # where it stood at the last tick, and whether its memory was let go of then
        self._last_position = (0, 0)
        self._idle = False
        # of what was logged, the segments that are not on the disk
        self._unsynced: list[SegmentFile] = []
        self._waiting: list[tuple[Client, int]] = []
        self._syncing = False
        # the number of the last segment whose name is known to be on the disk
        self._placed = 0
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
        segments = sorted(self._find())
        self._next = segments[-1].number + 1 if segments else 1
        whole = next((at for at, segment in enumerate(segments) if not segment.ended), len(segments))
        self._cut(segments[whole:], damage)
        for segment in segments[: whole + 1]:
            if segment.frames or segment.ended:
                self._found.append(segment.path)
                self._sort(segment, lives, damage)
        self._found_lives = {life.number for of_name in lives.values() for life in of_name}
        return lives, damage

    def _find(self) -> Iterable[FoundSegment]:
        for path in self._directory.iterdir():
            if path.name.startswith(SPARE_PREFIX):
                path.unlink()
            elif path.name.isdecimal():
                name = int(path.name)
                number, frames, used_bytes, ended = read_segment(path.read_bytes())
                if number < name:
                    # nothing that was written since it got this name has reached the disk
                    number, frames, ended = name, [], False
                # if it is more, the name is older: the machine was lost before the new one was on the disk
                yield FoundSegment(number, path, frames, used_bytes, ended)

    def _cut(self, segments: list[FoundSegment], damage: list[str]) -> None:
        """End the log in the first of these, where it breaks off.

        The other ones go first, then the end is written: whatever this is interrupted by, the next start
        finds the same.
        """
        if not segments:
            return
        broken, *others = segments
        lost = [segment for segment in others if segment.frames]
        for segment in reversed(others):
            if segment.frames:
                segment.path.rename(segment.path.with_name(f"{LOST_PREFIX}{segment.number}"))
            else:
                segment.path.unlink()
        sync_directory(self._directory)
        if broken.frames:
            with broken.path.open("r+b") as file:
                os.pwrite(file.fileno(), _end_of(broken.number), broken.used_bytes)
        else:
            broken.path.unlink()
        if lost:
            damage.append(
                f"{broken.path} breaks off: what was logged after that is left out, and kept in "
                f"{self._directory}/{LOST_PREFIX}* until somebody deletes it"
            )

    @staticmethod
    def _sort(segment: FoundSegment, lives: dict[bytes, list[Life]], damage: list[str]) -> None:
        entered: dict[int, Life] = {}
        for kind, journal, change, payload in segment.frames:
            if kind == Change.ENTER:
                number = int.from_bytes(payload[:8], "big")
                of_name = lives.setdefault(payload[8:], [])
                if not of_name or of_name[-1].number != number:
                    of_name.append(Life(number, []))
                entered[journal] = of_name[-1]
            elif journal in entered:
                entered[journal].changes.append((change, kind, payload))
            else:
                damage.append(f"{segment.path} has a change of a queue that it does not name, left out")

    def keep_found(self, pin: Hashable) -> None:
        """Keep what `recover` read until `pin` is unpinned."""
        self._found_pins.add(pin)

    def begin(self) -> None:
        """Begin to log; what `recover` read is kept as long as it is pinned.

        Raises OSError if that cannot be made sure of. Without room, nothing is taken in until there is some.
        """
        self._begun = True
        if self._found_pins:
            # What is logged from now on builds on it. It is written again, for if an earlier process had a
            # sync fail, the system takes for written what is not.
            for path in self._found:
                with path.open("r+b") as file:
                    os.pwrite(file.fileno(), file.read(), 0)
                    os.fdatasync(file.fileno())
            sync_directory(self._directory)
        self._recycle()
        try:
            self.roll()
        except JournalError as error:
            self.segment.refusal = error

    # Logging

    def roll(self) -> None:
        """Go on in a new segment. Raises JournalError if there is none to be had."""
        while True:
            try:
                if self._spare is None:
                    self._spare = self._reserve.pop() if self._reserve else SegmentFile(self._spare_path())
                self._start(self._spare)
                break
            except OSError as error:
                if not self.on_full(error):
                    raise self._roomless(error) from error
        self._spare = None
        self._recycle()
        self._make_spare()
        if len(self._files) > (1 if self.is_short else LONG_SEGMENTS):
            self.on_long(list(self._files[0].pins))

    def _start(self, file: SegmentFile) -> None:
        memory = file.map()
        file.rename(str(self._next))
        file.number = self._next
        self._next += 1
        self.segment.begin(memory, file.number)
        self.entered = 0
        if self._files:
            self._offload(self._files[-1].unmap, lambda _: None)
        self._files.append(file)
        self._unsynced.append(file)

    def enter(self, life: int) -> int:
        """A journal in that life has a number in the segment now written, which is returned."""
        self.entered += 1
        self._files[-1].lives.add(life)
        return self.entered

    def pin(self, journal: Hashable) -> None:
        """Keep the segment now written until `journal` is unpinned."""
        if self._files:
            self._files[-1].pins[journal] = None

    @contextlib.contextmanager
    def group(self, size: int) -> Iterator[None]:
        """What is logged within is found after a kill as a whole or not at all, if that is up to `size` bytes
        (GROUP_BYTES of them for each change) and a segment has so many. JournalError if there is no room."""
        if not self.segment.begin_group(size):
            self.roll()
            self.segment.begin_group(size)
        try:
            yield
        finally:
            self.segment.end_group()

    def outlast(self, life: int) -> None:
        """The end of a life was logged: what says so stays as long as anything older that tells of it."""
        last = self._files[-1]
        last.pins.update((file, None) for file in self._files[:-1] if life in file.lives)
        if self._found and life in self._found_lives:
            last.pins[FOUND] = None

    def unpin(self, pin: Hashable, below: int | None = None) -> None:
        """What pinned them needs no segment any more, or none whose number is below that given."""
        self._found_pins.discard(pin)
        for file in self._files:
            if below is None or file.number < below:
                file.pins.pop(pin, None)
        self._recycle()

    def _recycle(self) -> None:
        if self._begun and not self._found_pins:
            self._delete_found()
        for file in self._files[:-1]:
            # another one may have gone with the one before it
            if file in self._files and not (file.pins or file.leaving):
                self._part_with(file)

    def _delete_found(self) -> None:
        with contextlib.suppress(OSError):  # tried again when the next one goes
            # the oldest first: an end must not go before what it ends
            while self._found:
                self._found[0].unlink(missing_ok=True)
                del self._found[0]
            for file in self._files:
                file.pins.pop(FOUND, None)

    def _drop(self, file: SegmentFile) -> None:
        self._files.remove(file)
        self._doubtful = [other for other in self._doubtful if other is not file]
        for other in self._files:
            other.pins.pop(file, None)

    def _part_with(self, file: SegmentFile) -> None:
        """Keep a file that nobody needs to be used again, or delete it: in a thread. Until that is done it is
        there, and so is what must outlast it."""
        is_kept = len(self._reserve) + self._returning < RESERVE and file not in self._doubtful
        path = self._spare_path()
        self._returning += is_kept
        file.leaving = True
        self._unsynced = [other for other in self._unsynced if other is not file]

        def work() -> None:
            if is_kept:
                file.unmap()
                file.rename(path.name)
            else:
                file.delete()

        def done(error: Exception | None) -> None:
            file.leaving = False
            self._returning -= is_kept
            if error is not None:
                return  # it is tried again when the next one goes
            self._drop(file)
            if is_kept:
                file.lives.clear()
                self._reserve.append(file)
            self._recycle()

        self._offload(work, done)

    # Room

    def _spare_path(self) -> Path:
        """The path of a segment that has no number yet; each has another."""
        self._spares += 1
        return self._directory / f"{SPARE_PREFIX}{self._spares}"

    def _make_spare(self) -> None:
        """Have a segment ready, made in another thread: the next one, and what room there is when the disk
        is full."""
        if self._spare is not None or self._making:
            return
        self._making = True
        made = [self._reserve.pop()] if self._reserve else []
        path = self._spare_path()

        def work() -> None:
            if not made:
                made.append(SegmentFile(path))
            made[0].map()

        def done(error: Exception | None) -> None:
            self._making = False
            if error is not None:
                for file in made:
                    file.delete()
                if isinstance(error, OSError) and self.on_full(error):
                    self._make_spare()
                else:
                    self.segment.refusal = self._roomless(error)
            else:
                self._spare = made[0]

        self._offload(work, done)

    def _roomless(self, error: Exception) -> JournalError:
        reason = error.strerror if isinstance(error, OSError) else error
        return JournalError(f"cannot begin a segment of the log in {self._directory}: {reason}")

    def _is_there(self) -> bool:
        """Whether what is logged can be found again."""
        return not self._files or os.path.exists(self._files[-1].path)  # noqa: PTH110  # raises nothing

    def tick(self) -> None:
        """Look after the room there is; to be called a few times a second."""
        if not self._is_there():
            self.segment.refusal = JournalError(
                f"the log {self._files[-1].path} is not there any more: put its directory back as it was"
            )
            return
        self._make_spare()
        self._let_go()
        if self._doubtful:
            if self._files[-1] in self._doubtful:
                with contextlib.suppress(JournalError):  # at the next tick, then
                    self.roll()
            self.on_long([pin for file in self._doubtful for pin in file.pins])
        elif self._spare is not None:
            self.segment.refusal = None

    def _let_go(self) -> None:
        """Let go of the memory, and of the reserve, of a log that nothing is written to."""
        was_idle, self._idle = self._idle, self.position == self._last_position
        self._last_position = self.position
        if self._idle and not was_idle:
            for file in (*self._files[-1:], self._spare):
                if file is not None:
                    file.let_go()
            while self._reserve:
                self._offload(self._reserve.pop().delete, lambda _: None)

    # Syncing

    @property
    def position(self) -> tuple[int, int]:
        """Where the next change will be logged; to be compared with `synced`."""
        return self.segment.number, self.segment.used_bytes

    def sync(self, client: Client, slot: int) -> None:
        """Have `client` hold its replies until all that is logged now is on the disk; `fail` tells it if
        that failed, of reply `slot`. However many wait, they share the next sync."""
        client.hold()
        self._waiting.append((client, slot))
        if not self._syncing:
            self._begin_sync()

    def _begin_sync(self) -> None:
        waiting, self._waiting = self._waiting, []
        if self._doubtful:
            self._tell(waiting, JournalError(str(self.segment.refusal)))
            return
        files = list(self._unsynced)
        number, position = self.position
        place = number != self._placed
        self._syncing = True
        for file in files:
            file.pins[self] = None

        def work() -> None:
            for file in files:
                os.fdatasync(file.descriptor)
            if place:
                sync_directory(self._directory)

        def done(error: Exception | None) -> None:
            self._syncing = False
            failure = None if error is None else JournalError(f"cannot sync the log: {error}")
            if failure is None:
                self._placed = number
                self.synced = (number, position)
                self._unsynced = [file for file in self._unsynced if file.number >= number]
            else:
                self._doubt(files, failure)
            self.unpin(self)
            self._tell(waiting, failure)
            if self._waiting:
                self._begin_sync()

        self._offload(work, done)

    @staticmethod
    def _tell(waiting: Iterable[tuple[Client, int]], failure: JournalError | None) -> None:
        for client, slot in waiting:
            if failure is not None:
                client.fail(slot, failure)
            client.release()

    def _doubt(self, files: list[SegmentFile], failure: JournalError) -> None:
        """After a sync that failed the system takes for written what is not, and a later sync would not
        tell: nothing is taken in until the journals have all that is in these files."""
        self.segment.refusal = failure
        self._doubtful += files
        self._unsynced = [file for file in self._unsynced if file not in files]
        with contextlib.suppress(JournalError):  # tried again at the next tick
            self.roll()

    def close(self) -> None:
        """Let go of all files. What no journal needs any more is deleted."""
        self.segment.end()
        for file in list(self._files):
            if file.pins:
                file.close()
            else:
                self._drop(file)
                with contextlib.suppress(OSError):  # then the next start reads it, and finds nothing new
                    file.delete()
        if self._spare is not None:
            self._reserve.append(self._spare)
        for file in self._reserve:
            with contextlib.suppress(OSError):  # then the next start does it
                file.delete()


def _end_of(number: int) -> bytes:
    """The frame that ends the segment of this number."""
    memory, segment = bytearray(64), Segment()
    segment.begin(memory, number)
    start = segment.used_bytes
    segment.append(Change.END, 0, 0, b"")
    return bytes(memory[start : segment.used_bytes])
