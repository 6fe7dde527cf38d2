"""A copy of a queue's directory, while a server may write to it: as a kill at one moment would leave it.

LevelDB never changes a finished table, and only adds to its logs and to its manifest. As long as the manifest
does not grow, the tables it names are there, and its log is not replaced. So the copy is of the moment for
which two looks at the directory, before and after all that is new was opened, find the same manifest. What
was copied before that is copied again only if it is another file by then.
"""

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from darner.errors import BackupError
from darner.journal.copier import Copier
from darner.journal.files import read_small
from darner.journal.layout import BLOBS_NAME, MARK_NAME, STATE_NAME

# Files that others take the place of: they are read at once.
_SMALL = ("CURRENT", STATE_NAME, MARK_NAME)
# How many new tables may be opened at once; more are copied first, as long as they are there.
AT_ONCE = 64
# How often a moment is looked for. Each try takes what is new since the one before, which is soon little.
TRIES = 1000


class Moment(NamedTuple):
    """What of a directory is no longer the same once LevelDB has other tables or another log, or a journal at
    rest is written to."""

    directory: tuple[int, int]
    current: bytes | None
    manifests: list[tuple[str, int, int]]
    state: bytes | None


class _Found(NamedTuple):
    """The files of LevelDB in a directory: its tables, logs and manifests, each with its inode and size."""

    tables: dict[str, tuple[int, int]]
    growing: dict[str, tuple[int, int]]


def copy_leveldb(source: Path, target: Path, copier: Copier) -> tuple[int, int]:
    """Copy the LevelDB of a queue, and what its journal has left beside it, to the new directory `target`.

    Returns what identifies the directory `source`: its device and inode. Raises BackupError if it changes all
    the time or holds something else, OSError.
    """
    copier.make_directory(source, target)
    have: dict[str, tuple[int, int]] = {}
    for _ in range(TRIES):
        with contextlib.suppress(FileNotFoundError):  # LevelDB has deleted it: it has another one
            moment, found = _look(source), _find(source)
            new = {name: file for name, file in found.tables.items() if have.get(name) != file}
            if len(new) > AT_ONCE:
                for name, file in new.items():
                    with contextlib.suppress(FileNotFoundError):
                        copier.copy_file(source / name, target / name)
                        have[name] = file
            elif _copy_moment(source, target, copier, moment, new | found.growing):
                for name in have.keys() - found.tables.keys():
                    (target / name).unlink()
                return moment.directory
    raise BackupError(f"{source} changes too fast to be copied, or has gone; try again")


def copy_blobs(source: Path, target: Path, copier: Copier) -> None:
    """Copy the files of a queue's large items, but for those that go meanwhile. Raises OSError.

    One that is still being sent may be among them, in part: it belongs to no item, and a start deletes it.
    """
    if (source / BLOBS_NAME).is_dir():
        copier.make_directory(source / BLOBS_NAME, target / BLOBS_NAME)
        for file in (source / BLOBS_NAME).iterdir():
            if file.name.isdecimal():
                with contextlib.suppress(FileNotFoundError):
                    copier.copy_file(file, target / BLOBS_NAME / file.name)


def _look(source: Path) -> Moment:
    status, growing = source.stat(), _find(source).growing
    manifests = [(name, *file) for name, file in growing.items() if name.startswith("MANIFEST-")]
    try:
        current, state = read_small(source / "CURRENT"), read_small(source / STATE_NAME)
    except ValueError as error:
        raise BackupError(str(error)) from error
    return Moment((status.st_dev, status.st_ino), current, sorted(manifests), state)


def _find(source: Path) -> _Found:
    found = _Found({}, {})
    with os.scandir(source) as entries:
        for entry in entries:
            is_table = entry.name.endswith((".ldb", ".sst"))
            if (is_table or entry.name.endswith(".log") or entry.name.startswith("MANIFEST-")) and (
                entry.is_file()
            ):
                status = entry.stat()
                files = found.tables if is_table else found.growing
                files[entry.name] = status.st_ino, status.st_size
    return found


def _copy_moment(
    source: Path, target: Path, copier: Copier, moment: Moment, new: dict[str, tuple[int, int]]
) -> bool:
    """Copy the small files and the `new` ones, if all of them are of this moment; return whether they are."""
    with contextlib.ExitStack() as opened:
        files = []
        for name in new:
            descriptor = os.open(source / name, os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, descriptor)
            files.append((name, descriptor, os.fstat(descriptor).st_size))
        small = {name: read_small(source / name) for name in _SMALL}
        status = source.stat()
        if _look(source) != moment:
            return False
        for name, descriptor, size in files:
            copier.copy(descriptor, size, target / name)
        for name, content in small.items():
            if content is not None:
                copier.write(content, status, target / name)
    return True
