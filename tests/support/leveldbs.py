"""The LevelDB of a queue, opened without a server."""

import contextlib

from darner.journal import leveldb


@contextlib.contextmanager
def opened_db(path, **options):
    """Open the LevelDB in a directory, and close it."""
    with contextlib.closing(leveldb.DB(str(path), **options)) as db:
        yield db
