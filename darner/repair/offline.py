"""A data directory that no server has: locked against servers, and the queues in it."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from darner._proto import valid_name
from darner.config.kinds import NAME_RULE
from darner.errors import RepairError
from darner.journal.lock import DirectoryLock
from darner.journal.wal_recovery import Life
from darner.printable import shown
from darner.queues.names import name_of, queue_directories


@contextlib.contextmanager
def locked(data: Path, *, make: bool) -> Iterator[None]:
    """Keep servers away within the context. Unless `make`, no lock file is created.

    Raises RepairError if a server has the directory, or it cannot be used.
    """
    try:
        if not data.is_dir():
            raise RepairError(f"{data} is no directory")
        lock = DirectoryLock(data, make=make)
    except BlockingIOError:
        raise RepairError(f"a server has {data}; stop it first") from None
    except OSError as error:
        raise RepairError(f"cannot use {data}: {error.strerror or error}") from error
    with contextlib.closing(lock):
        yield


def queue_names(
    data: Path, lives: dict[bytes, list[Life]], on_stray: Callable[[Path], None] = lambda _: None
) -> list[bytes]:
    """Return the names of all queues in the data directory and in the log; `on_stray` is called with what is
    no queue's directory."""
    found = [name_of(directory) for directory in queue_directories(data, on_stray)]
    return list(dict.fromkeys(found + [name for name, known in lives.items() if not known[-1].retired]))


def check_name(name: bytes) -> None:
    """Raise RepairError if a queue cannot have this name."""
    if not valid_name(name):
        raise RepairError(f'"{shown(name)}" is no name of a queue: that has {NAME_RULE}')
