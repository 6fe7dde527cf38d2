"""A backup: a copy of a data directory, as a server that was killed at one moment would have left it.

LevelDBs are copied first, one after the other, then the log, then the files of large items. Meanwhile the
server removes no file. So the log has whatever a LevelDB lacks, and each item it knows of has its file. The
moment is that at which the log was copied: a start on the copy is a start after a kill at that moment.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from darner.errors import BackupError
from darner.journal import leveldb
from darner.journal.copier import Copier
from darner.journal.files import bytes_in, sync_directory, sync_file
from darner.journal.hold import HoldRequest
from darner.journal.layout import BLOBS_NAME
from darner.journal.live_copy import copy_blobs, copy_leveldb
from darner.journal.lock import DirectoryLock
from darner.journal.log_copy import copy_log
from darner.queues import clock_runs, status
from darner.queues.data_directory import LOG_NAME
from darner.queues.names import log_stray, name_of, queue_directories
from darner.repair.check import Report, check

# Called with what is being done, how much of it is done, and how much there is to do, as far as is known.
Progress = Callable[[str, int, int], None]


@dataclass
class Backup:
    """What was copied: how many queues, their items and bytes. `problems`: what the check of it found."""

    queues: int = 0
    items: int = 0
    bytes: int = 0
    problems: list[Report] = field(default_factory=list)


def back_up(
    data: Path,
    target: Path,
    pause: Callable[[], None],
    progress: Progress = lambda *_: None,
    *,
    keep_damaged: bool = False,
) -> Backup:
    """Copy the data directory `data` to `target`, which does not exist or is empty, and check the copy.

    The copy is made beside `target`, synced, checked, and then renamed. It is kept if the check found nothing
    wrong, or with `keep_damaged`. `pause` waits for some 50 ms. Raises BackupError if it cannot be made.
    """
    target = target.absolute()
    try:
        _check_place(data, target)
        with _scratch(target) as scratch:
            copy = scratch / "data"
            _copy(data, copy, pause, progress)
            _sync(copy, progress)
            backup = _check(data, copy, progress)
            if not backup.problems or keep_damaged:
                copy.rename(target)
                sync_directory(target.parent)
            return backup
    except OSError as error:
        where = "" if error.filename is None else f" ({os.fsdecode(error.filename)})"
        raise BackupError(f"cannot copy {data} to {target}: {leveldb.reason(error)}{where}") from error


def _check_place(data: Path, target: Path) -> None:
    """Raise BackupError if there is nothing to copy, or no place for the copy; OSError."""
    if not (data / LOG_NAME).is_dir():
        raise BackupError(f"{data} is no data directory of darner: it has no {LOG_NAME}")
    if target.resolve().is_relative_to(data.resolve()):
        raise BackupError(f"{target} is in {data}, where each directory is taken for a queue's")
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise BackupError(f"{target} is there, and is no empty directory")
    if target.is_mount():
        raise BackupError(f"a file system is mounted on {target}: give a directory in it")


@contextlib.contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """Make a directory beside `target`, which is removed in the end; and remove those of backups that were
    killed."""
    prefix = f".{target.name}.darner-backup-"
    for left in target.parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError), _locked(left):
            shutil.rmtree(left)
    scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        with _locked(scratch):
            yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _held(data: Path, pause: Callable[[], None]) -> Iterator[HoldRequest | None]:
    """Have nothing removed in `data` within the context: by the server that has it, or because there is none
    and none can start."""
    try:
        lock: DirectoryLock | HoldRequest = DirectoryLock(data, make=False)
    except BlockingIOError:
        lock = HoldRequest(data / LOG_NAME, pause)
    with contextlib.closing(lock):
        yield lock if isinstance(lock, HoldRequest) else None


def _copy(data: Path, copy: Path, pause: Callable[[], None], progress: Progress) -> None:
    """Copy all but what a start makes by itself, and what is no queue's."""
    done = 0
    total = bytes_in(data / LOG_NAME)
    for each in queue_directories(data, log_stray):
        total += bytes_in(data / each, data / each / BLOBS_NAME)

    def on_bytes(size: int) -> None:
        nonlocal done
        done += size
        progress("copied", done, max(done, total))

    copier = Copier(on_bytes)
    copier.make_directory(data, copy)
    with _held(data, pause) as request:
        confirm: Callable[[], None] = (lambda: None) if request is None else request.check
        directories = {}
        for each in queue_directories(data):
            _make_parents(data, copy, each, copier)
            directories[each] = copy_leveldb(data / each, copy / each, copier)
            confirm()
        names = copy_log(data / LOG_NAME, copy / LOG_NAME, copier, is_live=request is not None)
        _copy_blobs(data, copy, directories, names, copier)
        for name in (status.FILE_NAME, clock_runs.FILE_NAME):
            with contextlib.suppress(FileNotFoundError):
                copier.copy_file(data / name, copy / name)
        confirm()
    progress("copied", done, done)


def _copy_blobs(
    data: Path, copy: Path, directories: dict[Path, tuple[int, int]], names: set[bytes], copier: Copier
) -> None:
    """Copy the files of large items. `directories`: those whose LevelDBs were copied, each with what
    identifies it; `names`: the queues of the log."""
    for each in queue_directories(data):
        if each in directories:
            found = (data / each).stat()
            if directories.pop(each) != (found.st_dev, found.st_ino):
                raise BackupError(f"{data / each} was replaced while it was copied; try again")
        elif name_of(each) in names and (data / each / BLOBS_NAME).is_dir():  # all else of it is in the log
            _make_parents(data, copy, each, copier)
            copier.make_directory(data / each, copy / each)
        else:
            continue
        copy_blobs(data / each, copy / each, copier)
    if directories:
        raise BackupError(f"{data / next(iter(directories))} has vanished while it was copied; try again")


def _make_parents(data: Path, copy: Path, queue: Path, copier: Copier) -> None:
    """Make the directories of a long name around that of the queue."""
    for parent in reversed(queue.parents[:-1]):
        if not (copy / parent).exists():
            copier.make_directory(data / parent, copy / parent)


def _sync(copy: Path, progress: Progress) -> None:
    """Have all of the copy on the disk."""
    paths = [Path(directory) / name for directory, _, names in os.walk(copy) for name in names]
    directories = [Path(directory) for directory, *_ in os.walk(copy)]
    for at, path in enumerate(paths):
        sync_file(path)
        progress("on the disk", at + 1, len(paths))
    for directory in directories:
        sync_directory(directory)


def _check(data: Path, copy: Path, progress: Progress) -> Backup:
    """Check the copy; what is wrong is said with the paths in `data`."""
    backup = Backup()
    total = sum(1 for _ in queue_directories(copy))
    for report in check(copy, scratch_parent=copy.parent):
        if report.problems:
            texts = [text.replace(str(copy), str(data)) for text in report.problems]
            backup.problems.append(replace(report, problems=texts))
        if report.is_queue:
            backup.queues += 1
            backup.items += report.items
            backup.bytes += report.bytes
            progress("checked", backup.queues, max(backup.queues, total))
    return backup
