"""The write-ahead log: every change to every queue, in order, until the queue's own LevelDB has it.

Segments, files of one size in one directory, are written through mapped memory: a change is in the log once
it is copied there. That takes no system call, and outlives the process, for the pages are the system's.
`sync` has the disk have them. The room of a segment is reserved when it is made, so that a full disk is met
there, and not by a change. Where the file system needs more room even so, or somebody cuts the file short,
the segment is given up for the next one, and nothing is taken in until LevelDB has what it held.

A segment goes, or is used again, once no journal needs it any more. Which ones are needed is in the name of
an empty file, so a segment that is missing is not taken for one that had gone. One is used again only when
the disk has it that its old name is gone, and under a new marker: no bytes from before are read as changes of
it.

A start reads the segments that are there, the found ones, up to the first that breaks off, and ends that one
where it does, on the disk: what is logged from then on builds on just that, and so does each later start.
What is whole behind the break was written, and its loss is said; it is kept, for whoever can make use of it.
"""

import contextlib
import errno
import itertools
import mmap
import os
import secrets
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from darner._records import Change, Scanned, Segment, SegmentFormatError, populate, read_segment, segment_head
from darner.environment.offload import Offload
from darner.errors import JournalError, StartError
from darner.journal import leveldb
from darner.journal.blob import link_or_copy, sync_directory
from darner.printable import shown

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
# The empty file whose name says which segments are needed: `needed-3,5-7+9` are 3, 5 to 7, and 9 and all
# later ones that are there. A name is changed in one step, and in the order in which segments come and go,
# without a sync.
NEEDED_PREFIX = "needed-"
# Of how many queues the names are said when something of them is lost.
NAMES_SAID = 8
# What is surely taken for a name; beyond that a segment in the middle stays until others have gone.
NEEDED_BYTES = 200
# More than any disk has: a name that says more is none of darner's.
MOST_SEGMENTS = 1 << 20
# What a frame takes besides its payload; and what a segment takes besides its frames: its head and a copy of
# that, and the frames that end a group and the segment.
FRAME_BYTES = 29
HEAD_BYTES = 64
SEGMENT_OVERHEAD_BYTES = 2 * HEAD_BYTES + 2 * FRAME_BYTES
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
        """Make it, with all its room, and a head that says that it was not begun, on the disk: an empty one
        that a power cut left would not be told from a damaged one. Raises OSError if there is no room."""
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
            os.pwrite(self.descriptor, segment_head(0, _new_marker(), 0, 0, SEGMENT_BYTES), 0)
            os.fdatasync(self.descriptor)
        except OSError:
            self.delete()
            raise

    def map(self) -> mmap.mmap:
        """Return its memory."""
        if self._memory is None:
            self._memory = mmap.mmap(self.descriptor, SEGMENT_BYTES)
            populate(self._memory)
        return self._memory

    def check_head(self) -> None:
        """Raise OSError if its head cannot be written: where a file system copies on write, that may take
        room again. Without a head the end of the segment before it would be lost."""
        page = mmap.PAGESIZE
        with memoryview(self.map()) as memory, memory[:page] as head, memory[-page:] as copy:
            populate(head)
            populate(copy)

    def let_go(self) -> None:
        """Have its pages be the system's alone until they are written to again."""
        if self._memory is not None:
            self._memory.madvise(mmap.MADV_DONTNEED)

    def unmap(self) -> None:
        """Let go of its memory: it counts as this process's as long as it is mapped."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    @property
    def is_whole(self) -> bool:
        """Whether what is written to it can be found again: it has its name, and nobody has cut it short."""
        try:
            status = os.stat(self.path)  # noqa: PTH116  # four times a second
        except OSError:
            return False
        return status.st_size == SEGMENT_BYTES

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
    """A segment as a start has found it. `number` is that of its head, which its name may not have had
    yet."""

    number: int
    path: Path
    content: Scanned

    @property
    def is_evidence(self) -> bool:
        """Whether it has what somebody may want to look into, if it does not count."""
        content = self.content
        return bool(content.damage or content.behind or len(content.frames) > content.open_frames)

    def is_whole(self, later: "FoundSegment | None") -> bool:
        """Whether all that was written to it is there; `later` is the segment behind it, if there is one."""
        content = self.content
        return content.ended or (
            later is not None
            and later.content.previous == self.number
            and content.used_bytes >= later.content.previous_bytes
        )


class Needed:
    """Which segments are needed, as the name of a file says it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path: Path | None = None
        self._numbers: set[int] = set()
        # the number from which on each segment that is there is needed
        self._later = 1
        # threads change the name one after the other
        self._naming = threading.Lock()

    def find(self) -> tuple[set[int], int] | None:
        """Return the numbers that are said to be needed, and the one from which on all are that are there.
        None if nothing is said."""
        for path in self._directory.glob(f"{NEEDED_PREFIX}*"):
            with contextlib.suppress(ValueError):  # it is somebody else's
                found = _needed(path.name)
                self._path = path
                return found
        return None

    def begin(self, numbers: Iterable[int], later: int) -> None:
        """These are needed, and all from `later` on; nothing is said yet."""
        self._numbers, self._later = set(numbers), later

    def add(self, number: int) -> None:
        """Segment `number`, later than all before, is begun: by itself it is needed, and once that is said,
        too, it is missed."""
        self._numbers.add(number)
        self._later = number + 1

    def forget(self, numbers: Iterable[int]) -> None:
        """Say that these are needed no more; from any thread. Raises OSError if that cannot be said: then
        they are needed."""
        gone = self._numbers.intersection(numbers)
        self._numbers -= gone
        try:
            self.say()
        except OSError:
            self._numbers |= gone
            raise

    def say(self) -> None:
        """Have the name say it; from any thread. Raises OSError."""
        with self._naming:
            # a copy that is made in one step, for it may grow meanwhile
            name = _needed_name(sorted(self._numbers.copy()), self._later)
            if len(name) > NEEDED_BYTES:
                raise OSError(errno.ENAMETOOLONG, "too many segments in between are needed no more")
            path = self._directory / name
            if path == self._path:
                return
            try:
                if self._path is None:
                    raise FileNotFoundError
                self._path.rename(path)
            except FileNotFoundError:  # at the first start, or somebody has deleted it
                path.touch(mode=0o600)
            self._path = path

    def delete(self) -> None:
        """Say nothing any more, when there is no segment. Raises OSError."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None


def _needed_name(numbers: Sequence[int], later: int) -> str:
    ranges = []
    for _, run in itertools.groupby(enumerate(numbers), lambda entry: entry[1] - entry[0]):
        of_run = [number for _, number in run]
        ranges.append("-".join(str(number) for number in dict.fromkeys((of_run[0], of_run[-1]))))
    return f"{NEEDED_PREFIX}{','.join(ranges)}+{later}"


def _needed(name: str) -> tuple[set[int], int]:
    ranges, _, later = name.removeprefix(NEEDED_PREFIX).partition("+")
    numbers: set[int] = set()
    for each in ranges.split(",") if ranges else ():
        first, _, last = each.partition("-")
        span = range(int(first), int(last or first) + 1)
        if not 0 < len(span) <= MOST_SEGMENTS:
            raise ValueError(f"no log has {len(span)} segments")
        numbers.update(span)
    return numbers, int(later)


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
        # what is to be done when the group that is being logged has ended
        self.after_group: list[Callable[[], None]] = []
        # how many journals have a number in the segment now written
        self.entered = 0
        # up to where the log is on the disk; before the first sync, nothing of it
        self.synced = (-1, 0)
        # oldest first; the last is being written
        self._files: list[SegmentFile] = []
        self._needed = Needed(directory)
        # the next one, mapped, and whether one is being made that
        self._spare: SegmentFile | None = None
        self._making = False
        # used ones that will be it, and how many more will be such
        self._reserve: list[SegmentFile] = []
        self._returning = 0
        self._next = 1
        self._spares = 0
        # files of an earlier process, oldest first, for whose sake they are kept, and what lives they tell of
        self._found: list[FoundSegment] = []
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
        # the number of the last segment whose name is known to be on the disk, -1 if its directory may not be
        self._placed = -1
        # segments of which a sync failed, or that somebody has cut short
        self._doubtful: list[SegmentFile] = []
        # the last segment that has anything before the one now written, and where that ends: one may turn out
        # not to be writable before anything is in it
        self._end = (0, 0)

    # Start

    def recover(self) -> tuple[dict[bytes, list[Life]], list[str]]:
        """Read what an earlier process left.

        Returns the lives of each queue named there, oldest first, and what is to be said about damage.
        Raises OSError if it cannot be read, StartError if a later version of darner has written it.
        """
        lives: dict[bytes, list[Life]] = {}
        damage: list[str] = []
        segments, behind, reason = self._find()
        if not segments:
            self._set_aside(behind)
        else:
            end = len(segments) - 1
            # a group that has not come to its end does not count, and may reach over several segments
            opens = None
            for at, segment in enumerate(segments):
                if segment.content.commits:
                    opens = None
                if segment.content.open_frames and opens is None:
                    opens = at
            if opens is not None:
                end = opens
            self._cut(segments, end, behind)
            for segment in segments[: end + 1]:
                frames = segment.content.frames
                if segment is segments[end] and opens is not None:
                    frames = frames[: len(frames) - segment.content.open_frames]
                if frames or segment.content.ended:
                    self._found.append(segment)
                    _sort(segment.path, frames, lives, damage)
        if reason:
            damage.append(reason)
        self._needed.begin((int(one.path.name) for one in self._found), self._next)
        self._found_lives = {life.number for of_name in lives.values() for life in of_name}
        return lives, damage

    def _find(self) -> tuple[list[FoundSegment], list[FoundSegment], str]:
        """Return the segments up to the one that breaks off, those behind it, and what is to be said of
        that."""
        said = self._needed.find()
        found = []
        for path in self._directory.iterdir():
            if path.name.startswith(SPARE_PREFIX):
                path.unlink()
            elif path.name.isdecimal():
                found.append(_read(path, is_known=said is not None))
        found.sort()
        self._next = max([self._next, *(max(one.number, int(one.path.name)) + 1 for one in found)])
        if said is None:
            # version 1 did not say it; who deletes what says it does not make a gap one that had to be
            later = next((one.number for one in found if one.content.marker), self._next)
            numbers = {one.number for one in found}
        else:
            numbers, later = said
            for one in [one for one in found if one.number < later and one.number not in numbers]:
                one.path.unlink()  # it had gone, but for the disk
                found.remove(one)
        self._needed.begin(numbers, later)
        last = max((one.number for one in found), default=0)
        there = {one.number for one in found}
        # what was given up before anything was in it, by the head of the one behind it
        found = [
            one
            for one in found
            if one.content.frames
            or one.content.damage
            or not any(0 < other.content.previous < one.number < other.number for other in found)
        ]
        # the first is enough, and a head may say any number
        gaps = (
            next((number for number in each if number not in there), None)
            for each in (sorted(numbers), range(later, last))
        )
        missing = sorted(number for number in gaps if number is not None)
        reach = next((at for at, one in enumerate(found) if missing and one.number > missing[0]), len(found))
        end = next(
            (
                at
                for at in range(reach)
                if not found[at].is_whole(found[at + 1] if at + 1 < len(found) else None)
            ),
            reach - 1,
        )
        segments, behind = found[: end + 1], found[end + 1 :]
        return segments, behind, self._loss(segments, behind, missing)

    def _loss(self, segments: list[FoundSegment], behind: list[FoundSegment], missing: list[int]) -> str:
        """What is to be said of the end of the log: nothing if it ends as a process does that is killed."""
        broken = segments[-1] if segments else None
        frames = []
        if broken is not None and not broken.content.ended:
            frames += broken.content.behind
        for one in behind:
            frames += [*one.content.frames, *one.content.behind]
        if missing and not (broken is not None and broken.number > missing[0]):
            what = f"{self._directory / str(missing[0])} is missing"
        elif broken is None or broken.content.ended or not (frames or broken.content.damage):
            return ""
        elif broken.content.damage:
            what = f"{broken.path} {broken.content.damage}"
        else:
            what = f"{broken.path} breaks off at byte {broken.content.used_bytes}"
        count = sum(kind not in (Change.ENTER, Change.COMMIT, Change.END) for kind, *_ in frames)
        kept = f"kept in {self._directory}/{LOST_PREFIX}* until somebody deletes that"
        if not count:
            is_kept = broken is not None and broken.content.damage
            return f"{what}: what was logged there is lost" + (f"; it is {kept}" if is_kept else "")
        names = dict.fromkeys(shown(payload[8:]) for kind, _, _, payload in frames if kind == Change.ENTER)
        said = ", ".join(itertools.islice(names, NAMES_SAID)) + (", ..." if len(names) > NAMES_SAID else "")
        changes = f"{count} whole {'change' if count == 1 else 'changes'}" + (f" of {said}" if names else "")
        return f"{what}: behind that there {'is' if count == 1 else 'are'} {changes}, left out and {kept}"

    def _cut(self, segments: list[FoundSegment], end: int, behind: list[FoundSegment]) -> None:
        """End the log in segment `end` of these, where it breaks off, or where a group begins that has no
        end.

        What comes after it goes first, then the end is written: whatever this is interrupted by, the next
        start finds the same, and does not miss what went. Whatever may be of use to somebody is kept aside.
        """
        last = segments[end]
        content = last.content
        if content.ended and not content.open_frames and not behind and last is segments[-1]:
            return
        self._set_aside([*segments[end + 1 :], *behind])
        if (content.damage or content.behind) and not content.ended:
            with contextlib.suppress(FileExistsError):  # a start that was interrupted has done it
                link_or_copy(last.path, self._lost_path(last))
        sync_directory(self._directory)
        if content.ended or len(content.frames) > content.open_frames:
            with last.path.open("r+b") as file:
                os.pwrite(file.fileno(), _end_of(content), content.whole_bytes)
        else:
            self._needed.forget([int(last.path.name)])
            last.path.unlink()

    def _set_aside(self, segments: list[FoundSegment]) -> None:
        """Keep these where they do not count, the last one first, if there is anything in them; and have
        nobody miss them."""
        for one in reversed(segments):
            if one.is_evidence:
                one.path.rename(self._lost_path(one))
        self._needed.forget(int(one.path.name) for one in segments)
        for one in reversed(segments):
            if not one.is_evidence:
                one.path.unlink()

    def _lost_path(self, segment: FoundSegment) -> Path:
        """Where a segment is kept: under its number, unless another one is."""
        path = self._directory / f"{LOST_PREFIX}{segment.number}"
        for another in itertools.count(2):
            if not path.exists() or path.samefile(segment.path):
                return path
            path = path.with_name(f"{LOST_PREFIX}{segment.number}-{another}")
        raise AssertionError

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
            for one in self._found:
                with one.path.open("r+b") as file:
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
        lost = self._files[-1] if self.segment.is_lost else None
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
        if lost is not None:
            # where it ends says the new one's head alone
            self._files[-1].pins[lost] = None
            self._doubt(
                [lost], JournalError(f"cannot write {lost.path}: the disk is full, or it was cut short")
            )
        self._recycle()
        self._make_spare()
        if len(self._files) > (1 if self.is_short else LONG_SEGMENTS):
            self.on_long(list(self._files[0].pins))

    def _start(self, file: SegmentFile) -> None:
        memory = file.map()
        file.check_head()
        if not self._files:
            self._needed.say()
        file.rename(str(self._next))
        file.number = self._next
        self._needed.add(file.number)
        self._next += 1
        segment = self.segment
        if not (segment.is_lost and segment.used_bytes <= HEAD_BYTES):
            self._end = segment.number, segment.used_bytes
        segment.begin(memory, file.number, _new_marker(), *self._end)
        self.entered = 0
        before = self._files[-1] if self._files else None

        def work() -> None:
            if before is not None:
                before.unmap()
            self._needed.say()

        self._offload(work, lambda _: None)
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
        """Have what is logged within found after a kill as a whole or not at all: up to `size` bytes,
        GROUP_BYTES of them for each change. JournalError if there is no room; then nothing was logged."""
        self._have_room(size)
        first = self.segment.number
        self.segment.begin_group()
        try:
            yield
        finally:
            try:
                while not self.segment.end_group():
                    self.roll()
                # what says that it is whole stays as long as any part of it
                last = self._files[-1]
                last.pins.update((file, None) for file in self._files[:-1] if file.number >= first)
            finally:
                after, self.after_group = self.after_group, []
                for do in after:
                    do()

    def _have_room(self, size: int) -> None:
        """Have so many bytes of frames fit in this segment, or in some that are made for them."""
        if size <= self.segment.room_bytes:
            return
        capacity = SEGMENT_BYTES - SEGMENT_OVERHEAD_BYTES
        if size <= capacity:
            self.roll()
            return
        # of each some is left, since no frame lies in two; and one may be about to be made the spare one
        count = 2 * size // capacity + 2
        while len(self._reserve) < count:
            try:
                self._reserve.append(SegmentFile(self._spare_path()))
            except OSError as error:
                if not self.on_full(error):
                    raise self._roomless(error) from error

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
                self._needed.forget([int(self._found[0].path.name)])
                self._found[0].path.unlink(missing_ok=True)
                del self._found[0]
            for file in self._files:
                file.pins.pop(FOUND, None)

    def _drop(self, file: SegmentFile) -> None:
        self._files.remove(file)
        self._doubtful = [other for other in self._doubtful if other is not file]
        for other in self._files:
            other.pins.pop(file, None)

    def _part_with(self, file: SegmentFile) -> None:
        """Say that nobody needs a file, in a thread, and then be rid of it. Until that is done it is there,
        and so is what must outlast it."""
        file.leaving = True

        def done(error: Exception | None) -> None:
            if error is not None or file.pins:
                # it is tried again when the next one goes, or when it is synced
                file.leaving = False
                return
            # The disk may have it yet that it is needed. The next sync leaves it out, and sees to that.
            self._unsynced = [other for other in self._unsynced if other is not file]
            self._placed = -1
            self._be_rid_of(file)

        self._offload(lambda: self._needed.forget([file.number]), done)

    def _be_rid_of(self, file: SegmentFile) -> None:
        """Keep a file to be used again, or delete it, in a thread."""
        is_kept = len(self._reserve) + self._returning < RESERVE and file not in self._doubtful
        path = self._spare_path()
        self._returning += is_kept

        def work() -> None:
            if is_kept:
                file.unmap()
                file.rename(path.name)
                # Not before the disk has it that the old name is gone: after a power cut it would be that of
                # new bytes.
                sync_directory(self._directory)
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
        reason = leveldb.reason(error)
        return JournalError(f"cannot begin a segment of the log in {self._directory}: {reason}")

    def tick(self) -> None:
        """Look after the room there is; to be called a few times a second."""
        last = self._files[-1] if self._files else None
        if last is not None and not last.is_whole and last not in self._doubtful:
            if not last.path.exists():
                self.segment.refusal = JournalError(
                    f"the log {last.path} is not there any more: put its directory back as it was"
                )
                return
            self._doubt([last], JournalError(f"{last.path} was cut short: it has what LevelDB has not yet"))
        self._make_spare()
        self._let_go()
        if self._doubtful:
            if last in self._doubtful:
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

    def sync_now(self) -> None:
        """Have all that is logged now on the disk, on this thread. Raises OSError."""
        for file in self._unsynced:
            os.fdatasync(file.descriptor)
        sync_directory(self._directory)

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
            failure = None if error is None else JournalError(f"cannot sync the log: {leveldb.reason(error)}")
            if failure is None:
                self._placed = number
                self.synced = (number, position)
                self._unsynced = [file for file in self._unsynced if file.number >= number]
            else:
                self._doubt(files, failure)
                with contextlib.suppress(JournalError):  # tried again at the next tick
                    self.roll()
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
        """Take nothing in until the journals have all that is in these files, which may not have it. After a
        sync that failed the system takes for written what is not, and a later sync would not tell."""
        self.segment.refusal = failure
        self._doubtful += files
        self._unsynced = [file for file in self._unsynced if file not in files]

    def close(self) -> None:
        """Let go of all files. What no journal needs any more is deleted."""
        self.segment.end()
        with contextlib.suppress(OSError):  # then the next start reads it, and finds nothing new
            self._needed.forget([file.number for file in self._files if not file.pins])
            for file in [file for file in self._files if not file.pins]:
                self._drop(file)
                file.delete()
        for file in self._files:
            file.close()
        if self._spare is not None:
            self._reserve.append(self._spare)
        for file in self._reserve:
            with contextlib.suppress(OSError):  # then the next start does it
                file.delete()
        if not (self._files or self._found):
            with contextlib.suppress(OSError):  # then it says that nothing is needed
                self._needed.delete()


def _new_marker() -> int:
    """A number that nobody knows, not 0."""
    return secrets.randbits(64) | 1


def _read(path: Path, *, is_known: bool) -> FoundSegment:
    """Read a segment; it `is_known` by name that it is needed. Raises OSError; StartError if it is of a later
    version."""
    try:
        content = read_segment(path.read_bytes())
    except SegmentFormatError as error:
        raise StartError(
            f"a newer darner has written {path}: {error}. Use that one; nothing was touched"
        ) from error
    name = int(path.name)
    if content.number > name:
        # of version 1: the machine was lost before the new name was on the disk
        return FoundSegment(content.number, path, content)
    if content.number < name and (content.number or not content.damage or not is_known):
        # nothing that was written since it got this name has reached the disk
        content = read_segment(segment_head(name, 1, 0, 0, SEGMENT_BYTES).ljust(SEGMENT_BYTES, b"\0"))
    return FoundSegment(name, path, content)


def _sort(
    path: Path,
    frames: list[tuple[int, int, int, bytes]],
    lives: dict[bytes, list[Life]],
    damage: list[str],
) -> None:
    """Add what the frames of a segment say to the lives of the queues."""
    entered: dict[int, Life] = {}
    for kind, journal, change, payload in frames:
        if kind == Change.ENTER:
            number = int.from_bytes(payload[:8], "big")
            of_name = lives.setdefault(payload[8:], [])
            if not of_name or of_name[-1].number != number:
                of_name.append(Life(number, []))
            entered[journal] = of_name[-1]
        elif journal in entered:
            entered[journal].changes.append((change, kind, payload))
        else:
            damage.append(f"{path} has a change of a queue that it does not name, left out")


def _end_of(content: Scanned) -> bytes:
    """The frame that ends a segment."""
    memory, segment = bytearray(SEGMENT_OVERHEAD_BYTES), Segment()
    segment.begin(memory, content.number, content.marker)
    start = segment.used_bytes
    segment.end()
    frame = bytes(memory[start : start + FRAME_BYTES])
    return frame if content.marker else frame[8:]  # version 1 had none before it
