"""The trash: how the directory of a deleted queue is removed.

The directory is renamed into the trash, which takes it out of the way in one step, and is deleted there. A
mount point cannot be renamed, nor can a directory in a lower layer of an overlay: such a directory is marked
as deleted and emptied in place. A directory that has the mark is no queue's, whatever is still in there.
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
# The errors of a rename that would fail whatever the target is.
IMMOVABLE = (errno.EXDEV, errno.EBUSY)

Work = Callable[[], None]


def throw(data: Path, directory: Path) -> Work:
    """Move `directory`, which is below `data`, into the trash, or mark it as deleted if it cannot be moved;
    returns what is left to do in a thread, which deletes its content. Raises OSError if neither is
    possible."""
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
    """Return whether `throw` has marked this directory as deleted."""
    # not Path.exists: that raises where we may not look, which is for whoever opens the queue to say
    return os.path.exists(directory / DELETED_NAME)  # noqa: PTH110


def left_over(data: Path) -> Iterator[Work]:
    """Yield what an earlier process has left to do."""
    trash = data / TRASH_NAME
    # not the directory itself: more may come into it meanwhile
    for thrown in trash.iterdir() if trash.exists() else ():
        yield functools.partial(_delete, thrown)


def empty(directory: Path) -> None:
    """Delete the content of a directory that `throw` has marked, and the directory itself unless it is a
    mount point. Raises OSError if something stays."""
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
