"""Segments that have no number yet: the one that is begun next, and used ones kept to be used again.

They are created, mapped, renamed and deleted in threads, for each of these may wait for the disk.
"""

import contextlib
import itertools
from collections.abc import Callable
from pathlib import Path

from darner.environment.offload import Offload
from darner.journal.files import sync_directory
from darner.journal.segment_file import SegmentFile

# How many used segments are kept, without being mapped, as long as the log is written to: to create one each
# time costs a tenth of what a busy server does.
MAX_USED = 3
# What the name of a segment without a number begins with.
SPARE_PREFIX = "spare-"


class SegmentPool:
    """The segments of a log's directory that can be begun."""

    def __init__(
        self,
        directory: Path,
        offload: Offload,
        on_full: Callable[[OSError], bool],
        on_failure: Callable[[Exception], None],
    ) -> None:
        """`on_full` is called when there is no room for a segment, and returns whether there is now;
        `on_failure` with the error when none can be made ready."""
        self._directory = directory
        self._offload = offload
        self._on_full = on_full
        self._on_failure = on_failure
        # the segment to be begun next, mapped, and whether one is being made ready in a thread
        self.ready: SegmentFile | None = None
        self._is_preparing = False
        # used segments, and how many more are on their way here
        self.used: list[SegmentFile] = []
        self._returning = 0
        self._names = (f"{SPARE_PREFIX}{number}" for number in itertools.count(1))

    def next(self) -> SegmentFile:
        """Return the segment to be begun next, created now if there is none; it stays here until `take`.
        Raises OSError if there is no room."""
        if self.ready is None:
            self.ready = self.used.pop() if self.used else SegmentFile(self._new_path())
        return self.ready

    def take(self) -> None:
        """Remove the segment that `next` returned: it is begun."""
        self.ready = None

    def fill(self, count: int) -> None:
        """Create segments until `count` can be begun besides the one that is ready. Raises OSError."""
        while len(self.used) < count:
            self.used.append(SegmentFile(self._new_path()))

    def prepare(self) -> None:
        """Make a segment ready in a thread, if none is: the next one, and what room there is when the disk is
        full."""
        if self.ready is not None or self._is_preparing:
            return
        self._is_preparing = True
        made = [self.used.pop()] if self.used else []
        path = self._new_path()

        def work() -> None:
            if not made:
                made.append(SegmentFile(path))
            made[0].map()

        def done(error: Exception | None) -> None:
            self._is_preparing = False
            if error is None:
                self.ready = made[0]
                return
            for file in made:
                file.delete()
            if isinstance(error, OSError) and self._on_full(error):
                self.prepare()
            else:
                self._on_failure(error)

        self._offload(work, done)

    def recycle(
        self, file: SegmentFile, done: Callable[[Exception | None], None], *, is_reusable: bool
    ) -> None:
        """Keep a segment that nobody needs to be used again, or delete it if there are enough or it is not
        reusable, in a thread; then call `done` with the error, or None."""
        is_kept = is_reusable and len(self.used) + self._returning < MAX_USED
        path = self._new_path()
        self._returning += is_kept

        def work() -> None:
            if is_kept:
                file.unmap()
                file.rename(path.name)
                # It is not used again before the old name is off the disk: after a power cut that would be
                # the name of new bytes.
                sync_directory(self._directory)
            else:
                file.delete()

        def finish(error: Exception | None) -> None:
            self._returning -= is_kept
            if is_kept and error is None:
                file.lives.clear()
                self.used.append(file)
            done(error)

        self._offload(work, finish)

    def shrink(self) -> None:
        """Release the memory of the ready segment, and delete the used ones in a thread."""
        if self.ready is not None:
            self.ready.release_pages()
        while self.used:
            self._offload(self.used.pop().delete, lambda _: None)

    def close(self) -> None:
        """Delete all segments here."""
        if self.ready is not None:
            self.used.append(self.ready)
        for file in self.used:
            with contextlib.suppress(OSError):  # the next start does it
                file.delete()

    def _new_path(self) -> Path:
        return self._directory / next(self._names)
