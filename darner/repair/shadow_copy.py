"""Copies to look at: of a queue's directory, which has links for what LevelDB never changes, and of the log.

LevelDB writes when it is opened, but never to a file that it has finished: links do for those.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from darner.environment.offload import at_once
from darner.errors import JournalError, StartError
from darner.journal.files import sync_file
from darner.journal.layout import BLOBS_NAME, MARK_NAME
from darner.journal.segments_needed import NEEDED_PREFIX
from darner.journal.wal import Log
from darner.journal.wal_recovery import Life
from darner.queues.data_directory import LOG_NAME, unusable
from darner.queues.opening import read_log

# Makes the second path a link to the first one.
Link = Callable[[Path, Path], object]


def make_shadow(source: Path, shadow: Path, link: Link) -> None:
    """Make `shadow`, a directory with the LevelDB and the blobs of the queue's directory `source`: links to
    finished files, copies of the others. Raises OSError."""
    shadow.mkdir()
    for file in source.iterdir() if source.exists() else ():
        if file.name == BLOBS_NAME and file.is_dir():
            make_shadow(file, shadow / BLOBS_NAME, link)
        elif not file.is_file():  # a pipe would have to be waited for
            continue
        elif file.suffix in (".ldb", ".sst", ".log") or source.name == BLOBS_NAME:
            link(file, shadow / file.name)
        elif file.name in ("CURRENT", MARK_NAME) or file.name.startswith("MANIFEST-"):
            shutil.copyfile(file, shadow / file.name)


def symbolic_link(file: Path, path: Path) -> None:
    """Make `path` a symbolic link to `file`, which may lie on another file system."""
    path.symlink_to(file)


def hard_link(file: Path, path: Path) -> None:
    """Make `path` a hard link to `file`, or a copy where the file system has no links."""
    try:
        path.hardlink_to(file)
    except OSError:
        shutil.copyfile(file, path)
        sync_file(path)


def read_log_copy(data: Path, scratch: Path) -> tuple[Log, dict[bytes, list[Life]], list[str]]:
    """Copy the log of a data directory to `scratch` and read it there: reading ends it where it breaks off.

    Returns the copy, the lives of each queue, and what is damaged. Raises StartError if it cannot be read, or
    a later darner wrote it.
    """
    source, copy = data / LOG_NAME, scratch / LOG_NAME
    copy.mkdir()
    try:
        for file in source.iterdir() if os.path.lexists(source) else ():
            if file.name.isdecimal() or file.name.startswith(NEEDED_PREFIX):
                shutil.copyfile(file, copy / file.name)
    except OSError as error:
        raise unusable(data, error) from error
    log_copy = Log(copy, at_once)
    try:
        lives, damage = read_log(log_copy)
    except (JournalError, StartError) as error:
        raise StartError(str(error).replace(str(copy), str(source))) from error
    return log_copy, lives, [text.replace(str(copy), str(source)) for text in damage]
