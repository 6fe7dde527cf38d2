"""The names of queues and of their directories, which are the names percent-encoded.

All knowledge of how a name is written on the disk is in this file.
"""

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

import structlog

from darner._proto import valid_name
from darner.journal import foreign_files
from darner.journal.files import sync_directory, sync_name
from darner.journal.layout import BLOBS_NAME, LOST_FOUND, STATE_NAME
from darner.journal.lock import LOCK_NAME
from darner.queues import trash
from darner.queues.data_directory import LOG_NAME

log = structlog.get_logger()

# What every file system in use takes.
MAX_FILE_NAME_BYTES = 255
# Names that are those of their directories, whatever the file system is.
PLAIN = re.compile(rb"[a-z0-9_+-][a-z0-9_+.-]{0,250}")
# A capital, unless it stands in what is percent-encoded already.
CAPITAL = re.compile("(%..)|[A-Z]")


def directory_of(name: bytes, *, folds_case: bool = False) -> Path:
    """Return the directory of a queue, relative to the data directory.

    Bytes outside `[A-Za-z0-9_+-.]`, and a leading `.`, are percent-encoded, and so are capitals on a file
    system that `folds_case`. A name that is then too long for a file name has every `.` encoded and goes on
    in a directory inside; each piece that goes on ends in `%`. All of it is ASCII: no file system takes two
    of these directories for one.
    """
    if PLAIN.fullmatch(name):
        return Path(name.decode())
    encoded = quote(name, safe="+").replace("~", "%7E")
    if folds_case:
        encoded = CAPITAL.sub(lambda found: found[1] or f"%{ord(found[0]):02X}", encoded)
    if encoded.startswith("."):
        encoded = "%2E" + encoded[1:]
    size = MAX_FILE_NAME_BYTES - 1
    if len(encoded) <= size:
        return Path(encoded)
    # no piece may begin with a dot, let alone be `..`
    encoded = encoded.replace(".", "%2E")
    pieces = [encoded[at : at + size] for at in range(0, len(encoded), size)]
    return Path(*(piece + "%" for piece in pieces[:-1]), pieces[-1])


def name_of(directory: Path) -> bytes:
    """Return the name of the queue whose directory, relative to the data directory, this is."""
    *pieces, last = directory.parts
    return unquote_to_bytes(os.fsencode("".join(piece.removesuffix("%") for piece in pieces) + last))


def queue_directories(
    data: Path,
    stray: Callable[[Path], None] = lambda _: None,
    deleted: Callable[[Path], None] = lambda _: None,
    inside: Path = Path(),
) -> Iterator[Path]:
    """Yield the directories of queues, relative to the data directory. `deleted` is called with those of
    deleted queues, and `stray` with whatever else is there."""
    folds = folds_case(data)
    with os.scandir(data / inside) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for each in found:
        if each.name.startswith("."):
            continue
        relative, entry = inside / each.name, Path(each.path)
        # not Path.exists: that raises where we may not look
        if entry.name == LOST_FOUND and not os.path.exists(entry / "CURRENT"):  # noqa: PTH110
            continue
        if not _is_directory(each):
            stray(entry)
        elif entry.name.endswith("%"):
            try:
                yield from queue_directories(data, stray, deleted, relative)
            except OSError:  # the directory may not be read
                stray(entry)
        elif not _is_of_queue(data, relative, folds=folds):
            stray(entry)
        elif trash.is_deleted(entry):
            deleted(relative)
        else:
            yield relative


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # whoever opens it is told why
        return True


def _is_of_queue(data: Path, directory: Path, *, folds: bool) -> bool:
    """Return whether a directory is a queue's by its name; or, if its name is that of a file system of the
    other kind, by its name and files."""
    name = name_of(directory)
    if not valid_name(name) or directory == directory_of(name, folds_case=folds):
        return valid_name(name)
    return directory == directory_of(name, folds_case=not folds) and any(
        os.path.exists(data / directory / file)  # noqa: PTH110  # raises nothing
        for file in ("CURRENT", STATE_NAME, BLOBS_NAME)
    )


def folds_case(data: Path) -> bool:
    """Return whether the file system of a data directory takes names that differ by case alone for one.

    That shows by the files of a server: without them the answer is no.
    """
    return any((data / name.upper()).exists() for name in (LOCK_NAME, LOG_NAME))


def find_directory(data: Path, name: bytes) -> Path:
    """Return the directory that a queue has in a data directory that may have come from another file system;
    if it has none, the directory that it would have."""
    folds = folds_case(data)
    proper, other = directory_of(name, folds_case=folds), directory_of(name, folds_case=not folds)
    # not by its path: that may lead to another queue's
    is_other = not (data / proper).exists() and other in queue_directories(data)
    return data / (other if is_other else proper)


def log_stray(entry: Path) -> None:
    """Log a file or directory that lies in the data directory and is no queue's."""
    owner = foreign_files.owner(entry)
    # of the pieces of a long name only the last one is at the top
    blocks_a_name = directory_of(name_of(Path(entry.name))) == Path(entry.name)
    log.warning(
        "stray file or directory in the data directory, left alone",
        path=str(entry),
        **(
            {"what": f"{owner.what}, which darner migrate --from {owner.program} brings over"}
            if owner
            else {}
        ),
        action="move it away" + (": until then no queue can have its name" if blocks_a_name else ""),
    )


class Directories:
    """The directories of the queues in one data directory."""

    def __init__(self, data: Path) -> None:
        """The lock file must be in `data`, for it shows whether the file system folds case."""
        self.data = data
        self._folds_case = folds_case(data)

    def path_of(self, name: bytes) -> Path:
        """Return the path of the directory of a queue."""
        return self.data / directory_of(name, folds_case=self._folds_case)

    def settle(self, directory: Path) -> bytes:
        """Give the directory of a queue, relative to the data directory, the name that it has on this file
        system, for it may come from another one; returns the queue's name. A failure is logged."""
        name = name_of(directory)
        found, proper = self.data / directory, self.path_of(name)
        if found != proper:
            try:
                if proper.exists():
                    raise FileExistsError(errno.EEXIST, f"{proper} is there, too")
                proper.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                found.rename(proper)
                self.sync_removal(found)
                sync_name(proper)
            except OSError as error:
                log.error(
                    "the directory of a queue cannot be given the name it has on this file system",
                    directory=str(found),
                    name=str(proper),
                    reason=error.strerror,
                )
        return name

    def sync_removal(self, path: Path) -> None:
        """Sync to the disk that `path` was removed, and delete empty directories of a long name around it.

        One in which another queue is just being made may be deleted, too: then `Journal` makes it again.
        """
        for parent in path.parents:
            if not parent.name.endswith("%"):
                sync_directory(parent)
                break
            with contextlib.suppress(FileNotFoundError):  # deleted together with another queue
                sync_directory(parent)
            with contextlib.suppress(OSError):
                parent.rmdir()
