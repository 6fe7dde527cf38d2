"""What becomes of the directory of a deleted queue.

It is renamed into the trash, which takes it out of the way in one step, and is deleted there. A mount point
cannot be renamed, nor can a directory in a lower layer of an overlay: such a one is marked as deleted, and
emptied where it is. What has the mark is no queue, whatever is still in there.
"""

import contextlib
import errno
import functools
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from darner.journal.files import sync_directory
from darner.journal.layout import DELETED_NAME, LOST_FOUND

TRASH_NAME = ".trash"
# What rename says of what it cannot rename wherever it is to go.
IMMOVABLE = (errno.EXDEV, errno.EBUSY)

Work = Callable[[], None]


def throw(data: Path, directory: Path) -> Work:
    """Have `directory`, below `data`, be no queue's any more; returns what is left to do in a thread: to
    delete what is in it. Raises OSError if it cannot be."""
    # not by the process's number: in a container it is the same at every start
    thrown = data / TRASH_NAME / uuid.uuid4().hex
    thrown.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        directory.rename(thrown)
    except OSError as error:
        if error.errno not in IMMOVABLE:
            raise
        (directory / DELETED_NAME).touch(mode=0o600)
        sync_directory(directory)
        return functools.partial(empty, directory)
    return functools.partial(_delete, thrown)


def is_deleted(directory: Path) -> bool:
    """Whether `throw` has left this directory where it is."""
    # not Path.exists: that raises where we may not look, which is for whoever opens the queue to say
    return os.path.exists(directory / DELETED_NAME)  # noqa: PTH110


def left_over(data: Path) -> Iterator[Work]:
    """What an earlier process has left to do."""
    trash = data / TRASH_NAME
    # not the directory itself: more may come into it meanwhile
    for thrown in trash.iterdir() if trash.exists() else ():
        yield functools.partial(_delete, thrown)


def empty(directory: Path) -> None:
    """Delete all that is in a directory that `throw` has marked, and the directory if that can be. Raises
    OSError if something stays."""
    _empty(directory)
    if not directory.is_mount():
        mark = directory / DELETED_NAME
        mark.unlink()
        try:
            directory.rmdir()
        except OSError:
            mark.touch(mode=0o600)
            raise


def _empty(directory: Path) -> None:
    for entry in directory.iterdir():
        if entry.name in (DELETED_NAME, LOST_FOUND):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def _delete(thrown: Path) -> None:
    if not thrown.is_symlink():
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(thrown)
        return
    # the link was renamed; what it leads to is where it was
    with contextlib.suppress(FileNotFoundError):
        directory = Path(os.path.realpath(thrown))
        _empty(directory)
        with contextlib.suppress(OSError):
            directory.rmdir()
    thrown.unlink(missing_ok=True)
