"""A copy of the write-ahead log, while a server may write to it: as a kill at one moment would leave it."""

import os
from pathlib import Path

from darner._records import Change, Scanned, SegmentFormatError, read_segment
from darner.errors import BackupError
from darner.journal.copier import Copier
from darner.journal.segment_file import HEAD_BYTES
from darner.journal.segments_needed import NeededSegments

# How often it is begun anew: when the hold begins, a few segments may be on their way out.
TRIES = 100


def copy_log(source: Path, target: Path, copier: Copier, *, is_live: bool) -> set[bytes]:
    """Copy the segments in the directory `source` to the new directory `target`. `is_live`: whether a server
    writes to them, which holds all that there are.

    Returns the names of queues that the copy has changes of. Raises BackupError if the segments change all
    the time, OSError.
    """
    copier.make_directory(source, target)
    for _ in range(TRIES):
        try:
            return _copy(source, target, copier, is_live=is_live)
        except FileNotFoundError:
            for file in target.iterdir():
                file.unlink()
    raise BackupError(f"the log in {source} changes too fast to be copied; try again")


def _copy(source: Path, target: Path, copier: Copier, *, is_live: bool) -> set[bytes]:
    found = {int(name) for name in os.listdir(source) if name.isdecimal()}  # noqa: PTH208
    named = NeededSegments(source).read()
    if is_live:
        # One that is held may not be needed any more, but by a LevelDB that was copied before. One that is
        # needed and not there is to be missed in the copy, too.
        last = max(found, default=0)
        numbers = found.union(number for number in (named or (set(),))[0] if number <= last)
        later = last + 1
    elif named is not None:
        numbers, later = named
        found = {number for number in found if number in numbers or number >= later}
    # The last one first: whatever that has got by then, the one before it is whole.
    names = set()
    for number in sorted(found, reverse=True):
        path = source / str(number)
        content = path.read_bytes()
        segment = _read(content, path)
        if segment is not None:
            names |= {payload[8:] for kind, _, _, payload in segment.frames if kind == Change.ENTER}
            if is_live:
                content = _cut(content, segment)
        copier.write(content, path.stat(), target / path.name)
    if is_live or named is not None:
        needed = NeededSegments(target)
        needed.reset(numbers, later)
        needed.write()
    return names


def _read(content: bytes, path: Path) -> Scanned | None:
    """Read a segment; None if it was not begun, or a later darner has written it, which the check of the copy
    says. Raises FileNotFoundError if it is another one by now."""
    try:
        segment = read_segment(content)
    except SegmentFormatError:
        return None
    if segment.number > int(path.name):
        raise FileNotFoundError(path)
    return segment if segment.number == int(path.name) else None


def _cut(content: bytes, segment: Scanned) -> bytes:
    """Return a segment without what is behind its first break: that was written while it was read."""
    if segment.damage or segment.ended:
        return content
    end = len(content) - HEAD_BYTES
    return content[: segment.used_bytes].ljust(end, b"\0") + content[end:]
