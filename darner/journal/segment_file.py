"""One segment of the write-ahead log: a file of fixed size, written through mapped memory.

The format of what is in it is that of `Segment` and `read_segment` (compiled). Which segments there are and
what they are called is for wal.py.
"""

import mmap
import os
import secrets
from collections.abc import Hashable
from pathlib import Path

from darner._records import populate, segment_head

# Large enough that a busy server begins a few a second, small enough for resident memory: two are mapped.
SEGMENT_BYTES = 4 << 20
# What a frame takes besides its payload; and what a segment takes besides its frames: its head and a copy of
# that, and the frames that end a group and the segment.
FRAME_BYTES = 29
HEAD_BYTES = 64
SEGMENT_OVERHEAD_BYTES = 2 * HEAD_BYTES + 2 * FRAME_BYTES
# What a change takes in a segment besides an item's bytes: its frame's head, the record's head, and an ENTER
# frame with the longest name.
GROUP_BYTES = 400


def new_marker() -> int:
    """Return a random number for the frames of one use of a segment's file; never 0."""
    return secrets.randbits(64) | 1


class SegmentFile:
    """The file of one segment, with the journals that still need it.

    `number`: the segment's number, 0 until it is begun. `pins`: who needs the segment. `lives`: the lives of
    queues that have changes in it. `is_leaving`: whether it is being deleted or made ready to be used again.
    """

    __slots__ = ("_memory", "descriptor", "is_leaving", "lives", "number", "path", "pins")

    def __init__(self, path: Path) -> None:
        """Create the file, reserve its room and sync a head that says the segment was not begun.

        Without that head an empty file that a power cut left would look damaged. Raises OSError if there is
        no room; then there is no file.
        """
        self.path = path
        self.number = 0
        self.pins: dict[Hashable, None] = {}
        self.lives: set[int] = set()
        self.is_leaving = False
        self._memory: mmap.mmap | None = None
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(self.descriptor, 0, SEGMENT_BYTES)
            os.pwrite(self.descriptor, segment_head(0, new_marker(), 0, 0, SEGMENT_BYTES), 0)
            os.fdatasync(self.descriptor)
        except OSError:
            self.delete()
            raise

    def map(self) -> mmap.mmap:
        """Map the file into memory, if it is not, and return that memory."""
        if self._memory is None:
            self._memory = mmap.mmap(self.descriptor, SEGMENT_BYTES)
            populate(self._memory)
        return self._memory

    def check_head(self) -> None:
        """Raise OSError if the head cannot be written.

        A file system that copies on write may need new room for it. Without a head, the end of the segment
        before this one would be lost.
        """
        page = mmap.PAGESIZE
        with memoryview(self.map()) as memory, memory[:page] as head, memory[-page:] as copy:
            populate(head)
            populate(copy)

    def release_pages(self) -> None:
        """Take the mapped pages off this process' resident memory until they are written to again."""
        if self._memory is not None:
            self._memory.madvise(mmap.MADV_DONTNEED)

    def unmap(self) -> None:
        """Unmap the file: mapped memory counts as this process'."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    @property
    def is_intact(self) -> bool:
        """Whether a start would find the file: it has its name and its full size."""
        try:
            status = os.stat(self.path)  # noqa: PTH116  # four times a second
        except OSError:
            return False
        return status.st_size == SEGMENT_BYTES

    def rename(self, name: str) -> None:
        """Rename the file within its directory."""
        self.path = self.path.rename(self.path.with_name(name))

    def close(self) -> None:
        """Close the file and leave it to the next start."""
        self.unmap()
        os.close(self.descriptor)

    def delete(self) -> None:
        """Delete the file and close it. Raises OSError if that fails; then it is as it was."""
        self.path.unlink(missing_ok=True)
        self.close()
