"""The write-ahead log that an earlier process left: what a start finds of it.

The segments are read up to the first that breaks off or is missing. The log is ended there, on the disk,
before anything new is logged: what is logged from then on builds on just what was found, and every later
start finds the same. Whole frames behind the break were written and are lost: that is reported, and their
segments are kept under another name.
"""

import contextlib
import itertools
import os
from collections.abc import Hashable
from pathlib import Path
from typing import NamedTuple

from darner._records import Change, Scanned, Segment, SegmentFormatError, read_segment, segment_head
from darner.errors import StartError
from darner.journal import segment_file
from darner.journal.files import link_or_copy, sync_directory
from darner.journal.segment_file import FRAME_BYTES, SEGMENT_OVERHEAD_BYTES
from darner.journal.segment_pool import SPARE_PREFIX
from darner.journal.segments_needed import NeededSegments
from darner.printable import shown

# What the name of a segment begins with that was behind a break, and is kept for whoever wants to look into
# it.
LOST_PREFIX = "lost-"
# How many queues are named at most when changes of them are lost.
MAX_NAMES_TOLD = 8


class Life(NamedTuple):
    """The changes that the log has of one queue, from its creation or the first one there to its deletion.

    `number`: the random number by which a queue is told from an earlier one of the same name.
    `changes`: of each its number, its kind, and the payload of its frame.
    """

    number: int
    changes: list[tuple[int, int, bytes]]

    @property
    def retired(self) -> bool:
        """Whether the queue was deleted at the end."""
        ends = (Change.RETIRE, Change.REVIVE)
        return next((kind for _, kind, _ in reversed(self.changes) if kind in ends), None) == Change.RETIRE


class FoundSegment(NamedTuple):
    """A segment that a start has found.

    `number` is the one in its head. After a power cut the file may still have the name that it had before.
    """

    number: int
    path: Path
    content: Scanned

    @property
    def is_evidence(self) -> bool:
        """Whether it is worth keeping although it does not count: it is damaged, or has whole frames."""
        content = self.content
        return bool(content.damage or content.behind or len(content.frames) > content.open_frames)

    def is_whole(self, later: "FoundSegment | None") -> bool:
        """Whether all that was written to it is there; `later` is the segment after it, if there is one."""
        content = self.content
        return content.ended or (
            later is not None
            and later.content.previous == self.number
            and content.used_bytes >= later.content.previous_bytes
        )


class FoundLog:
    """The segments that an earlier process left, and the journals that still need them.

    `pins`: who needs them. `lives`: the lives of queues that they have changes of. `next_number`: the first
    number that no segment has had.
    """

    def __init__(self, directory: Path, needed: NeededSegments) -> None:
        self._directory = directory
        self._needed = needed
        # oldest first
        self._segments: list[FoundSegment] = []
        self.pins: set[Hashable] = set()
        self.lives: set[int] = set()
        self.next_number = 1

    def read(self) -> tuple[dict[bytes, list[Life]], list[str]]:
        """Read the log and end it where it breaks off.

        Returns the lives of each queue, oldest first, and what is damaged. Raises OSError if the log cannot
        be read, StartError if a later version of darner has written it.
        """
        lives: dict[bytes, list[Life]] = {}
        damage: list[str] = []
        segments, behind, reason = self._find()
        if not segments:
            self._set_aside(behind)
        else:
            open_group = _open_group(segments)
            end = len(segments) - 1 if open_group is None else open_group
            self._cut(segments, end, behind)
            for at, segment in enumerate(segments[: end + 1]):
                frames = segment.content.frames
                if at == open_group:
                    frames = frames[: len(frames) - segment.content.open_frames]
                if frames or segment.content.ended:
                    self._segments.append(segment)
                    _sort(segment.path, frames, lives, damage)
        if reason:
            damage.append(reason)
        self._needed.reset((int(segment.path.name) for segment in self._segments), self.next_number)
        self.lives = {life.number for of_name in lives.values() for life in of_name}
        return lives, damage

    def rewrite(self) -> None:
        """Write and sync the segments once more. Raises OSError.

        After an earlier process met a sync that failed, the system takes for written what is not.
        """
        for segment in self._segments:
            with segment.path.open("r+b") as file:
                os.pwrite(file.fileno(), file.read(), 0)
                os.fdatasync(file.fileno())
        sync_directory(self._directory)

    def delete(self) -> None:
        """Delete the segments, the oldest first: an end must not go before what it ends. Raises OSError; then
        some are left."""
        while self._segments:
            path = self._segments[0].path
            self._needed.remove([int(path.name)])
            path.unlink(missing_ok=True)
            del self._segments[0]

    @property
    def is_empty(self) -> bool:
        """Whether there are no segments, or none any more."""
        return not self._segments

    def _find(self) -> tuple[list[FoundSegment], list[FoundSegment], str]:
        """Return the segments up to the one that breaks off, those behind it, and what is lost there ("" if
        nothing)."""
        named = self._needed.read()
        if named is not None:
            self._delete_unneeded(*named)
        found = self._read_all(is_known=named is not None)
        self.next_number = max(
            [self.next_number, *(max(one.number, int(one.path.name)) + 1 for one in found)]
        )
        if named is None:
            # Version 1 had no such file. If somebody has deleted it, a gap is not taken for a missing
            # segment.
            later = next((one.number for one in found if one.content.marker), self.next_number)
            numbers = {one.number for one in found}
        else:
            numbers, later = named
        self._needed.reset(numbers, later)
        missing = _missing(found, numbers, later)
        found = [one for one in found if not _was_given_up(one, found)]
        reach = next((at for at, one in enumerate(found) if missing and one.number > missing[0]), len(found))
        whole = (found[at].is_whole(found[at + 1] if at + 1 < len(found) else None) for at in range(reach))
        end = next((at for at, is_whole in enumerate(whole) if not is_whole), reach - 1)
        segments, behind = found[: end + 1], found[end + 1 :]
        return segments, behind, self._loss(segments, behind, missing)

    def _delete_unneeded(self, numbers: set[int], later: int) -> None:
        """Delete segments that are not needed, unread: they were deleted, and the disk had not got that; or
        they were held for a backup, and there may be many."""
        for path in self._directory.iterdir():
            if path.name.isdecimal() and int(path.name) < later and int(path.name) not in numbers:
                path.unlink()

    def _read_all(self, *, is_known: bool) -> list[FoundSegment]:
        """Read all segments, in their order, and delete those that were never begun."""
        found = []
        for path in self._directory.iterdir():
            if path.name.startswith(SPARE_PREFIX):
                path.unlink()
            elif path.name.isdecimal():
                found.append(_read(path, is_known=is_known))
        return sorted(found)

    def _loss(self, segments: list[FoundSegment], behind: list[FoundSegment], missing: list[int]) -> str:
        """Say what is lost at the end of the log, "" if it ends as it does when a process is killed."""
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
        told = ", ".join(itertools.islice(names, MAX_NAMES_TOLD))
        told += ", ..." if len(names) > MAX_NAMES_TOLD else ""
        changes = f"{count} whole {'change' if count == 1 else 'changes'}" + (f" of {told}" if names else "")
        return f"{what}: behind that there {'is' if count == 1 else 'are'} {changes}, left out and {kept}"

    def _cut(self, segments: list[FoundSegment], end: int, behind: list[FoundSegment]) -> None:
        """End the log in `segments[end]`: where that breaks off, or before a group that was not completed.

        What comes after it goes first, then the end is written: whenever this is interrupted, the next start
        finds the same log, and misses nothing.
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
                os.pwrite(file.fileno(), _end_frame(content), content.whole_bytes)
        else:
            self._needed.remove([int(last.path.name)])
            last.path.unlink()

    def _set_aside(self, segments: list[FoundSegment]) -> None:
        """Take these segments out of the log, the last one first: rename those that are evidence, delete the
        others."""
        for one in reversed(segments):
            if one.is_evidence:
                one.path.rename(self._lost_path(one))
        self._needed.remove(int(one.path.name) for one in segments)
        for one in reversed(segments):
            if not one.is_evidence:
                one.path.unlink()

    def _lost_path(self, segment: FoundSegment) -> Path:
        """Return where a segment is kept: under its number, with another number behind it if that is taken by
        another file."""
        path = self._directory / f"{LOST_PREFIX}{segment.number}"
        for another in itertools.count(2):
            if not path.exists() or path.samefile(segment.path):
                return path
            path = path.with_name(f"{LOST_PREFIX}{segment.number}-{another}")
        raise AssertionError


def _read(path: Path, *, is_known: bool) -> FoundSegment:
    """Read a segment. `is_known`: whether the `needed-` file was there to name it.

    Raises OSError; StartError if a later version has written it.
    """
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
        size = segment_file.SEGMENT_BYTES
        content = read_segment(segment_head(name, 1, 0, 0, size).ljust(size, b"\0"))
    return FoundSegment(name, path, content)


def _missing(found: list[FoundSegment], numbers: set[int], later: int) -> list[int]:
    """Return the first number that is needed and not there, of `numbers` and of those from `later` on."""
    there = {one.number for one in found}
    last = max(there, default=0)
    # one of each is enough: a head may say any number
    first = (
        next((number for number in each if number not in there), None)
        for each in (sorted(numbers), range(later, last))
    )
    return sorted(number for number in first if number is not None)


def _was_given_up(segment: FoundSegment, found: list[FoundSegment]) -> bool:
    """Whether a segment was given up before anything was written to it, by the head of a later one."""
    content = segment.content
    return not (content.frames or content.damage) and any(
        0 < other.content.previous < segment.number < other.number for other in found
    )


def _open_group(segments: list[FoundSegment]) -> int | None:
    """Return in which of these segments a group begins that has no COMMIT, None if there is none.

    A group may reach over several segments.
    """
    begun = None
    for at, segment in enumerate(segments):
        if segment.content.commits:
            begun = None
        if segment.content.open_frames and begun is None:
            begun = at
    return begun


def _sort(
    path: Path,
    frames: list[tuple[int, int, int, bytes]],
    lives: dict[bytes, list[Life]],
    damage: list[str],
) -> None:
    """Add the changes in the frames of one segment to the lives of their queues."""
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


def _end_frame(content: Scanned) -> bytes:
    """Return the frame that ends a segment."""
    memory, segment = bytearray(SEGMENT_OVERHEAD_BYTES), Segment()
    segment.begin(memory, content.number, content.marker)
    start = segment.used_bytes
    segment.end()
    frame = bytes(memory[start : start + FRAME_BYTES])
    return frame if content.marker else frame[8:]  # version 1 had no marker before it
