"""A repaired directory takes the place of a damaged one."""

import ctypes
import os
from pathlib import Path

from darner.journal.files import sync_directory, sync_name
from darner.journal.layout import BLOBS_NAME

# Of Linux; the standard library has no names for them.
AT_FDCWD = -100
RENAME_EXCHANGE = 2


def free_path(path: Path) -> Path:
    """Return `path` with the first number behind it that is not taken."""
    number = 1
    while (free := path.with_name(f"{path.name}-{number}")).exists():
        number += 1
    return free


def swap(source: Path, repaired: Path, damaged: Path) -> None:
    """Move the directory `source` to `damaged`, if it is there, and `repaired` into its place. Raises
    OSError.

    Where the system can, at no instant there is no `source`.
    """
    for directory in (repaired, repaired / BLOBS_NAME):
        if directory.exists():
            sync_directory(directory)
    source.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if source.exists():
        repaired.rename(damaged)  # interrupted here, the queue is as it was
        if not exchange(source, damaged):
            damaged.rename(repaired)
            source.rename(damaged)
    if not source.exists():
        repaired.rename(source)
    sync_name(source)
    sync_directory(damaged.parent)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; return whether the system and the file system can do that."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    return renameat2 is not None and not renameat2(
        AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE
    )
