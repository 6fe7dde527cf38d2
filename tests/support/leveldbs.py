"""The LevelDBs of queues without a server: opened, and counted."""

import contextlib
from pathlib import Path

from darner.journal import leveldb


@contextlib.contextmanager
def opened_db(path, **options):
    """Open the LevelDB in a directory, and close it."""
    with contextlib.closing(leveldb.DB(str(path), **options)) as db:
        yield db


def open_leveldbs():
    """Return the lock files of the LevelDBs that this process has open, each with its path."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(link.readlink())
    return {path for path in found if path.name.startswith("LOCK")}
