"""The write-ahead log: every change to every queue, in order, until the queue's own LevelDB has it.

Segments, files of one size in one directory, are written through mapped memory: a change is in the log once
it is copied there. That takes no system call, and outlives the process, for the pages are the system's. A
sync has the disk have them. The room of a segment is reserved when its file is created, so that a full disk
is met there, and not by a change. Where the file system needs more room even so, or somebody cuts the file
short, the segment is given up for the next one, and no changes are taken until LevelDB has what it held.

A segment is deleted, or used again, once no journal needs it. It is used again only when the disk has it that
its old name is gone, and under a new marker: no bytes from before are read as changes of it. While a backup
is made, its file stays, though no start would read it.
"""

import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from pathlib import Path

from darner._records import Segment
from darner.environment.offload import Offload
from darner.errors import JournalError
from darner.journal import leveldb, segment_file
from darner.journal.files import sync_directory
from darner.journal.hold import Hold
from darner.journal.segment_file import HEAD_BYTES, SEGMENT_OVERHEAD_BYTES, SegmentFile, new_marker
from darner.journal.segment_pool import SegmentPool
from darner.journal.segments_needed import NeededSegments
from darner.journal.wal_recovery import FoundLog, Life
from darner.journal.wal_sync import Client, SharedSync

# Beyond so many segments the journals that need the oldest are written to LevelDB: what a start has to read
# stays small.
LONG_SEGMENTS = 8
# What pins a segment that has to outlast those an earlier process left.
FOUND = "found"


class Log:
    """The log of a data directory.

    `segment`: the one that is written. `entered`: how many journals have a number in it.
    """

    def __init__(self, directory: Path, offload: Offload, offload_sync: Offload | None = None) -> None:
        """Use `directory`, which is created if it is missing; `offload_sync` is for the syncs alone. Raises
        OSError."""
        directory.mkdir(mode=0o700, exist_ok=True)
        sync_directory(directory.parent)
        self._directory = directory
        self._offload = offload
        self.segment = Segment()
        self.entered = 0
        # called when the log has become long, with the journals that need its oldest segment
        self.on_long: Callable[[Iterable[Hashable]], None] = lambda _: None
        # called when there is no room for a segment; returns whether there is now
        self.on_full: Callable[[OSError], bool] = lambda _: False
        # whether free space is short: then the log is kept as short as can be
        self.space_is_short = False
        self.hold = Hold(directory)
        # the files of segments that nobody needs but a backup
        self._held: list[Path] = []
        # called when the group that is being logged has ended
        self.after_group: list[Callable[[], None]] = []
        # oldest first; the last is being written
        self._files: list[SegmentFile] = []
        self._needed = NeededSegments(directory)
        self._pool = SegmentPool(directory, offload, self._make_disk_room, self._refuse)
        self._found = FoundLog(directory, self._needed)
        # the number of the next segment
        self._next = 1
        self._syncs = SharedSync(self, directory, offload_sync or offload)
        self._has_begun = False
        # segments of which a sync has failed, or that somebody has cut short
        self._suspects: list[SegmentFile] = []
        # The last segment with anything in it before the one that is written, and where that ends: a segment
        # may turn out not to be writable before anything is in it.
        self._end = (0, 0)
        # the position at the last tick, and whether it was the same at the one before
        self._last_position = (0, 0)
        self._is_idle = False

    # Start

    def recover(self) -> tuple[dict[bytes, list[Life]], list[str]]:
        """Read what an earlier process has logged; see `FoundLog.read`."""
        self.hold.end()
        found = self._found.read()
        self._next = self._found.next_number
        return found

    def pin_found(self, pin: Hashable) -> None:
        """Keep what `recover` has read until `pin` is unpinned."""
        self._found.pins.add(pin)

    def begin(self) -> None:
        """Begin to log. What `recover` has read is kept as long as it is pinned.

        Raises OSError if what it builds on cannot be synced. Without room for a segment, the log refuses
        changes until there is some.
        """
        self._has_begun = True
        if self._found.pins:
            self._found.rewrite()
        self._recycle()
        try:
            self.roll()
        except JournalError as error:
            self.segment.refusal = error

    # Logging

    def roll(self) -> None:
        """Go on in a new segment. Raises JournalError if there is no room for one."""
        lost = self._files[-1] if self.segment.is_lost else None
        while True:
            try:
                self._start(self._pool.next())
                break
            except OSError as error:
                if not self.on_full(error):
                    raise self._no_room(error) from error
        self._pool.take()
        if lost is not None:
            # where it ends is in the head of the new one alone
            self._files[-1].pins[lost] = None
            self._suspect(
                [lost], JournalError(f"cannot write {lost.path}: the disk is full, or it was cut short")
            )
        self._recycle()
        self._pool.prepare()
        if len(self._files) > (1 if self.space_is_short else LONG_SEGMENTS):
            self.on_long(list(self._files[0].pins))

    def _start(self, file: SegmentFile) -> None:
        """Begin to write to a segment, the last in the log from now on. Raises OSError; then nothing was
        begun."""
        memory = file.map()
        file.check_head()
        if not self._files:
            self._needed.write()
        file.rename(str(self._next))
        file.number = self._next
        self._needed.add(file.number)
        self._next += 1
        segment = self.segment
        if not (segment.is_lost and segment.used_bytes <= HEAD_BYTES):
            self._end = segment.number, segment.used_bytes
        segment.begin(memory, file.number, new_marker(), *self._end)
        self.entered = 0
        before = self._files[-1] if self._files else None

        def work() -> None:
            if before is not None:
                before.unmap()
            self._needed.write()

        self._offload(work, lambda _: None)
        self._files.append(file)
        self._syncs.add(file)

    def enter(self, life: int) -> int:
        """Return the number that a journal in this life has in the segment that is written."""
        self.entered += 1
        self._files[-1].lives.add(life)
        return self.entered

    @contextlib.contextmanager
    def group(self, size: int) -> Iterator[None]:
        """Have a start find all or nothing of what is logged within the context.

        That may be up to `size` bytes, with GROUP_BYTES for each change. Raises JournalError if there is no
        room; then nothing was logged.
        """
        self._make_room(size)
        first = self.segment.number
        self.segment.begin_group()
        try:
            yield
        finally:
            try:
                while not self.segment.end_group():
                    self.roll()
                # the segment with the COMMIT stays as long as any that has a part of the group
                self._pin_to_last(file for file in self._files[:-1] if file.number >= first)
            finally:
                calls, self.after_group = self.after_group, []
                for call in calls:
                    call()

    def _make_room(self, size: int) -> None:
        """Have room for so many bytes of frames, in this segment or in some more. Raises JournalError."""
        if size <= self.segment.room_bytes:
            return
        capacity = segment_file.SEGMENT_BYTES - SEGMENT_OVERHEAD_BYTES
        if size <= capacity:
            self.roll()
            return
        # of each some is left over, since no frame lies in two; and one may be about to be made ready
        count = 2 * size // capacity + 2
        while True:
            try:
                self._pool.fill(count)
                return
            except OSError as error:
                if not self.on_full(error):
                    raise self._no_room(error) from error

    # Which segments are needed

    def pin(self, pin: Hashable) -> None:
        """Keep the segment that is written until `pin` is unpinned."""
        if self._files:
            self._files[-1].pins[pin] = None

    def pin_end_of(self, life: int) -> None:
        """Keep the segment that is written, which says that this life has ended, as long as any older one has
        a change of it."""
        self._pin_to_last(file for file in self._files[:-1] if life in file.lives)
        if not self._found.is_empty and life in self._found.lives:
            self._files[-1].pins[FOUND] = None

    def _pin_to_last(self, files: Iterable[SegmentFile]) -> None:
        """Keep the segment that is written as long as these are there."""
        self._files[-1].pins.update((file, None) for file in files)

    def unpin(self, pin: Hashable, below: int | None = None) -> None:
        """Let go of the segments that `pin` has kept, or of those with a number below the given one."""
        self._found.pins.discard(pin)
        for file in self._files:
            if below is None or file.number < below:
                file.pins.pop(pin, None)
        self._recycle()

    def _recycle(self) -> None:
        """Have the segments deleted, or used again, that nobody needs."""
        if self._has_begun and not self._found.pins and not self.hold.is_held:
            self._delete_found()
        for file in self._files[:-1]:
            # another one may have gone with the one before it
            if file in self._files and not (file.pins or file.is_leaving):
                self._remove(file)

    def _delete_found(self) -> None:
        with contextlib.suppress(OSError):  # tried again when the next one goes
            self._found.delete()
            for file in self._files:
                file.pins.pop(FOUND, None)

    def _remove(self, file: SegmentFile) -> None:
        """Say on the disk that nobody needs a segment, in a thread, and then recycle it. Until that is done
        it is there, and keeps what has to outlast it."""
        file.is_leaving = True

        def done(error: Exception | None) -> None:
            if error is not None or file.pins:
                # it is tried again when the next one goes, or when it is synced
                file.is_leaving = False
                return
            # The disk may still say that it is needed. The next sync leaves it out, and syncs that name.
            self._syncs.discard([file])
            self._syncs.sync_names()
            if self.hold.is_held:
                self._held.append(file.path)
                self._offload(file.close, removed)
            else:
                self._pool.recycle(file, removed, is_reusable=file not in self._suspects)

        def removed(error: Exception | None) -> None:
            file.is_leaving = False
            if error is None:  # else it is tried again when the next one goes
                self._forget(file)
                self._recycle()

        self._offload(lambda: self._needed.remove([file.number]), done)

    def _forget(self, file: SegmentFile) -> None:
        self._files.remove(file)
        self._suspects = [other for other in self._suspects if other is not file]
        for other in self._files:
            other.pins.pop(file, None)

    def _let_go(self) -> None:
        """Delete what was held for a backup, in a thread."""
        held, self._held = self._held, []
        self._offload(lambda: _delete(held), lambda _: None)
        self._recycle()

    # Room

    def _no_room(self, error: Exception) -> JournalError:
        reason = leveldb.reason(error)
        return JournalError(f"cannot begin a segment of the log in {self._directory}: {reason}")

    def _make_disk_room(self, error: OSError) -> bool:
        """Return whether there is room on the disk now, after `error` has said that there was none."""
        return self.on_full(error)

    def _refuse(self, error: Exception) -> None:
        """Take no more items: no segment can be made ready."""
        self.segment.refusal = self._no_room(error)

    def tick(self) -> None:
        """Look after the segments and the room there is; to be called a few times a second."""
        was_held = self.hold.is_held
        self.hold.look()
        if not self.hold.is_held and (was_held or self._held):
            self._let_go()
        last = self._files[-1] if self._files else None
        if last is not None and not last.is_intact and last not in self._suspects:
            if not last.path.exists():
                self.segment.refusal = JournalError(
                    f"the log {last.path} is not there any more: put its directory back as it was"
                )
                return
            self._suspect([last], JournalError(f"{last.path} was cut short: it has what LevelDB has not yet"))
        self._pool.prepare()
        self._release_if_idle()
        if self._suspects:
            if last in self._suspects:
                with contextlib.suppress(JournalError):  # at the next tick, then
                    self.roll()
            self._recycle()  # one that nobody needs is still here if its removal failed
            self.on_long([pin for file in self._suspects for pin in file.pins])
        elif self._pool.ready is not None:
            self.segment.refusal = None

    def _release_if_idle(self) -> None:
        """Release the memory and the used segments of a log that nothing has been written to for a tick."""
        was_idle, self._is_idle = self._is_idle, self.position == self._last_position
        self._last_position = self.position
        if self._is_idle and not was_idle:
            for file in self._files[-1:]:
                file.release_pages()
            self._pool.shrink()

    @property
    def bytes(self) -> int:
        """How many bytes of the disk the segments take that are still needed."""
        return len(self._files) * segment_file.SEGMENT_BYTES

    # Syncs

    @property
    def position(self) -> tuple[int, int]:
        """Where the next change will be logged: the number of the segment, and the offset in it."""
        return self.segment.number, self.segment.used_bytes

    @property
    def synced(self) -> tuple[int, int]:
        """Up to which position the log is on the disk."""
        return self._syncs.synced

    def sync(self, client: Client, slot: int) -> None:
        """Hold the replies of `client` until all that is logged now is on the disk. If that fails, its reply
        `slot` is failed."""
        self._syncs.sync(client, slot)

    def sync_now(self) -> None:
        """Sync all that is logged now, on this thread. Raises OSError."""
        self._syncs.sync_now()

    @property
    def sync_failure(self) -> JournalError | None:
        """Why a sync would be of no use, or None."""
        return JournalError(str(self.segment.refusal)) if self._suspects else None

    def fail_sync(self, files: list[SegmentFile], error: JournalError) -> None:
        """Take what is in these files for lost, and go on in a new segment: their sync failed."""
        self._suspect(files, error)
        with contextlib.suppress(JournalError):  # tried again at the next tick
            self.roll()

    def _suspect(self, files: list[SegmentFile], error: JournalError) -> None:
        """Refuse items until LevelDB has all that is in these segments, which may not have it.

        After a sync that failed the system takes for written what is not, and a later sync would not tell.
        """
        self.segment.refusal = error
        self._suspects += files
        self._syncs.discard(files)

    def close(self) -> None:
        """Close all segments, and delete those that no journal needs."""
        self.segment.end()
        _delete(self._held)
        with contextlib.suppress(OSError):  # then the next start reads them, and finds nothing new
            self._needed.remove([file.number for file in self._files if not file.pins])
            for file in [file for file in self._files if not file.pins]:
                self._forget(file)
                file.delete()
        for file in self._files:
            file.close()
        self._pool.close()
        if not self._files and self._found.is_empty:
            with contextlib.suppress(OSError):  # then it says that nothing is needed
                self._needed.delete()


def _delete(paths: list[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):  # the next start does it
            path.unlink()


class ClosedLog(Log):
    """In place of the log of a journal that was set aside: it takes no change, and keeps what it has."""

    def __init__(self, fault: JournalError) -> None:
        self._fault = fault
        # a segment in which nothing has room
        self.segment = Segment()
        self.segment.refusal = fault
        self.entered = 0

    def roll(self) -> None:
        """Raise why nothing is logged."""
        raise self._fault.with_traceback(None)

    def pin(self, journal: Hashable) -> None:
        """Do nothing: what the journal needs is pinned, and stays so."""
