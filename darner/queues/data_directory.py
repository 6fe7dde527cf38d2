"""Whether a server can use a data directory, whether one does, and how one takes it."""

import contextlib
import errno
import os
from pathlib import Path

import structlog

from darner.errors import StartError
from darner.journal import foreign_files
from darner.journal.leveldb import reason
from darner.journal.lock import LOCK_NAME, DirectoryLock
from darner.queues.trash import TRASH_NAME

log = structlog.get_logger()

# The directory of the write-ahead log of all queues.
LOG_NAME = ".log"
# What a migration is to bring there, until it has; and afterwards.
MIGRATING_NAME = ".migrating"
MIGRATED_NAME = ".migrated"
# What can be done if the data directory cannot be used, by the system's number for why.
REMEDIES = {
    errno.EACCES: "let the user that darner runs as write there, or give another with --data",
    errno.EPERM: "let the user that darner runs as write there, or give another with --data",
    errno.EROFS: "mount it to be written to, or give another with --data",
    errno.ENOSPC: "make room there, or give another with --data",
    errno.EDQUOT: "raise the quota, or give another with --data",
}


def take(data: Path, *, for_migration: bool = False) -> DirectoryLock:
    """Make the data directory if it is missing, and lock it. Raises StartError if it cannot be used, is
    another program's, or another server has it; and unless it is `for_migration`, if it has a part of a
    migration."""
    check_whose(data)
    if not for_migration:
        check_whole(data)
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = DirectoryLock(data)
    except BlockingIOError as error:
        raise StartError(
            f"the data directory {data} is in use by another darner; stop that one, "
            "or give another with --data"
        ) from error
    except OSError as error:
        raise unusable(data, error) from error
    if lock.weakness is not None:
        log.warning(
            "this file system cannot lock the data directory, but only the file .lock in it",
            reason=lock.weakness.strerror,
            action="leave that file where it is, or a second server can have the directory",
        )
    return lock


def check_whose(data: Path) -> None:
    """Raise StartError if a directory that no darner has used is one of another server: nothing is to be
    written there."""
    if (data / LOG_NAME).exists():
        return
    if program := foreign_files.owner_of_all(data):
        raise StartError(
            f"{data} is a data directory of {foreign_files.TITLES[program]}:"
            f" darner migrate --from {program} {data} --to DATA brings its queues over to another one"
        )


def check_whole(data: Path) -> None:
    """Raise StartError if a directory has a part of what a migration is to bring there."""
    if (data / MIGRATING_NAME).exists():
        raise StartError(
            f"a migration to {data} is not over: the same darner migrate command goes on with it;"
            " or delete the directory"
        )


def is_served(data: Path) -> bool:
    """Return whether a server has the data directory."""
    try:
        DirectoryLock(data, make=False).close()
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def unusable(data: Path, error: OSError) -> StartError:
    """Return the error that says why a server cannot use the data directory, and what can be done about
    it."""
    path = data if error.filename is None else Path(os.fsdecode(error.filename))
    what = f"{path} in the data directory {data}" if data in path.parents else f"the data directory {data}"
    action = REMEDIES.get(error.errno or 0, "give another with --data")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return StartError(f"cannot use {what}: it is no directory; move it away, or give another with --data")
    return StartError(f"cannot use {what}: {reason(error)}; {action}")


def nearest_existing(path: Path) -> Path:
    """Return the path, or the nearest directory above it that exists."""
    return next(each for each in (path, *path.parents) if os.path.lexists(each))


def check_usable(data: Path) -> None:
    """Raise StartError if a server could not use the data directory, as far as that can be told without
    making or changing anything."""
    check_whose(data)
    check_whole(data)
    for path in [nearest_existing(data), *(data / name for name in (LOCK_NAME, LOG_NAME, TRASH_NAME))]:
        with contextlib.suppress(FileNotFoundError):
            number = _obstacle(path)
            if number:
                raise unusable(data, OSError(number, os.strerror(number), path))


def _obstacle(path: Path) -> int:
    """Return the system's number for why `path` cannot be used, or 0."""
    is_directory = path.is_dir()
    if path.name == LOCK_NAME:
        if is_directory:
            return errno.EISDIR
    elif not is_directory and os.path.lexists(path):
        return errno.ENOTDIR
    rights = os.R_OK | os.W_OK | (os.X_OK if is_directory else 0)
    if os.path.lexists(path) and not os.access(path, rights):
        return errno.EROFS if os.statvfs(path).f_flag & os.ST_RDONLY else errno.EACCES
    return 0
