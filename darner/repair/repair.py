"""Damaged queues are repaired: a rebuilt directory takes the place of the damaged one, which is kept
beside."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from darner.errors import ForeignError, JournalError, NewerFormatError, RepairError, StartError
from darner.journal import foreign_files, leveldb
from darner.journal.wal_recovery import Life
from darner.printable import shown
from darner.queues.names import directory_of, find_directory
from darner.repair.check import DAMAGED_PREFIX, REPAIR_PREFIX, check_queue, reason_and_action
from darner.repair.offline import check_name, locked, queue_names
from darner.repair.rebuild import Rebuild
from darner.repair.shadow_copy import read_log_copy
from darner.repair.swap import free_path, swap

log = structlog.get_logger()

# As much of a queue's name as fits into a file name behind a prefix and a number.
LABEL_BYTES = 200
# What could not be repaired, and why.
_CANNOT = "cannot repair {}, it is as it was: {}"


@dataclass(frozen=True)
class Repaired:
    """What came of a repair.

    `items` and `bytes`: what the queue has now. `losses`: what is gone, a sentence each. `damaged`: where the
    damaged directory is; None if nothing was damaged, and nothing was done.
    """

    items: int
    bytes: int
    losses: list[str]
    damaged: Path | None


def repair(data: Path, name: bytes) -> Repaired:
    """Repair the queue of this name, if it is damaged.

    Raises RepairError if nothing can be saved, or a server has the data directory; then nothing has changed.
    """
    check_name(name)
    with locked(data, make=True):
        return _repair(data, name)


def repair_all(data: Path) -> Iterator[tuple[bytes, Repaired | RepairError]]:
    """Repair each damaged queue, and yield the names of all and what came of each.

    Raises RepairError if a server has the data directory, or the log cannot be read.
    """
    with locked(data, make=True):
        with tempfile.TemporaryDirectory(prefix="darner-repair-") as scratch:
            try:
                _, lives, _ = read_log_copy(data, Path(scratch))
            except StartError as error:
                raise RepairError(f"nothing is repaired: {error}") from error
        for name in queue_names(data, lives):
            try:
                yield name, _repair(data, name)
            except RepairError as error:
                yield name, error
            except Exception as error:  # whatever it is, the others are to be repaired
                log.exception("internal error while a queue was repaired", queue=shown(name))
                yield name, RepairError(f"internal error: {type(error).__name__}: {error}")


def _repair(data: Path, name: bytes) -> Repaired:
    source = find_directory(data, name)
    label = "".join(directory_of(name).parts)[:LABEL_BYTES]
    scratch = data / f"{REPAIR_PREFIX}{label}"
    try:
        with contextlib.suppress(FileNotFoundError):  # of a repair that was interrupted
            shutil.rmtree(scratch)
        scratch.mkdir(mode=0o700)
        log_copy, lives, _ = read_log_copy(data, scratch)
        if not source.exists() and name not in lives:
            raise RepairError(f"{data} has no queue {shown(name)}")
        report = check_queue(data, name, scratch, log_copy, lives.get(name, []))
        if not report.problems:
            return Repaired(report.items, report.bytes, [], None)
        if report.refusal is not None and not _may_be_replaced(source, report.refusal, lives.get(name, [])):
            raise RepairError(_CANNOT.format(source, "; ".join(report.problems)))
        items, size, losses = Rebuild(name, source, scratch, log_copy, lives.get(name, [])).run()
        damaged = free_path(data / f"{DAMAGED_PREFIX}{label}")
        swap(source, scratch / "queue", damaged)
    except (OSError, leveldb.Error, JournalError, StartError) as error:
        raise RepairError(_CANNOT.format(source, reason_and_action(error))) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Repaired(items, size, losses, damaged)


def _may_be_replaced(source: Path, refusal: JournalError, lives: list[Life]) -> bool:
    """Return whether a directory that a check has refused, rather than found damaged, may be replaced."""
    if isinstance(refusal, ForeignError):
        is_in_log = bool(lives) and not lives[-1].retired
        return source.is_dir() and (is_in_log or not foreign_files.owner(source))
    return not isinstance(refusal, NewerFormatError)
