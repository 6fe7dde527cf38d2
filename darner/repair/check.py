"""Whether the queues of a data directory are whole, and whatever else a server would report of it.

Nothing is changed: queues and log are looked at in copies, in the system's temporary directory or
another one.
"""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from darner.environment.offload import at_once
from darner.errors import DamagedError, JournalError, OutOfServiceError, RepairError, StartError
from darner.journal import leveldb
from darner.journal.layout import BLOBS_NAME, DAMAGED_NAME
from darner.journal.quarantine import count_quarantined
from darner.journal.recognition import check_owner, is_new
from darner.journal.wal import Log
from darner.journal.wal_recovery import LOST_PREFIX, Life
from darner.printable import shown
from darner.queues.clock_runs import Runs
from darner.queues.data_directory import LOG_NAME, check_usable
from darner.queues.names import find_directory, log_stray
from darner.queues.status import Status
from darner.queues.trash import TRASH_NAME
from darner.repair.examination import examine, read_resting_state
from darner.repair.offline import check_name, locked, queue_names
from darner.repair.shadow_copy import make_shadow, read_log_copy, symbolic_link

log = structlog.get_logger()

# What a repair leaves in the data directory: its own files while it works, and the damaged directory.
REPAIR_PREFIX = ".repair-"
DAMAGED_PREFIX = ".damaged-"

# What to do with what was kept.
_DELETE = "delete it when it is of no more use"


@dataclass(frozen=True)
class Report:
    """What a check has found: of a queue, or of the log.

    `items` and `bytes`: what the queue has. `is_queue`: whether it is of a queue in its directory. `refusal`:
    the error that says that a repair cannot mend it, or must not.
    """

    where: str
    problems: list[str]
    items: int = 0
    bytes: int = 0
    is_queue: bool = False
    refusal: JournalError | None = None

    @property
    def is_repairable(self) -> bool:
        """Whether a repair can do something about it."""
        return bool(self.problems) and self.is_queue and self.refusal is None


def check(data: Path, name: bytes | None = None, scratch_parent: Path | None = None) -> Iterator[Report]:
    """Check each queue, or the one of this name, the log, and what else a server would report.

    Copies are made in a new directory in `scratch_parent`, which is removed again. What a server would only
    warn of is logged. Raises RepairError if there is nothing to check, or a server has the data directory.
    """
    if name is not None:
        check_name(name)
    with (
        locked(data, make=False),
        tempfile.TemporaryDirectory(prefix="darner-check-", dir=scratch_parent) as scratch,
    ):
        refused = ""
        try:
            check_usable(data)
        except StartError as error:
            refused = str(error)
            yield Report(str(data), [refused])
        try:
            log_copy, lives, damage = read_log_copy(data, Path(scratch))
        except StartError as error:
            # the queues are checked all the same
            log_copy, lives, damage = Log(Path(scratch) / "none", at_once), {}, [str(error)]
        if damage and damage != [refused]:
            yield Report("log", damage)
        if name is None:
            yield from _check_surroundings(data)
        names = queue_names(data, lives, log_stray if name is None else lambda _: None)
        if name is not None and name not in names:
            raise RepairError(f"{data} has no queue {shown(name)}")
        for each in names if name is None else (name,):
            yield check_queue(data, each, Path(scratch), log_copy, lives.get(each, []))


def check_queue(data: Path, name: bytes, scratch: Path, log_copy: Log, lives: list[Life]) -> Report:
    """Check one queue in a copy in `scratch`, with the copy of the log and what that has of it."""
    source, shadow = find_directory(data, name), scratch / "shadow"
    problems: list[str] = []
    items = size = 0
    refusal = None
    _log_quarantine(name, source)
    try:
        _check_access(source)
        if not is_new(source):
            check_owner(source)
        make_shadow(source.resolve(), shadow, symbolic_link)
        problems, items, size = examine(name, shadow, log_copy, lives, read_resting_state(source), source)
    except JournalError as error:
        problems = [reason_and_action(error)]
        refusal = None if isinstance(error, DamagedError) else error
    except OSError as error:
        refusal = leveldb.failure(f"cannot read {source}", error)
        problems = [refusal.reason]
    except Exception as error:  # whatever it is, the other queues are to be checked
        log.exception("internal error while a queue was looked at", queue=shown(name))
        problems = [f"internal error: {type(error).__name__}: {error}"]
    finally:
        shutil.rmtree(shadow, ignore_errors=True)
    texts = [text.replace(str(shadow), str(source)) for text in problems]
    return Report(shown(name), texts, items, size, is_queue=True, refusal=refusal)


def reason_and_action(error: Exception) -> str:
    """Return what an error says; and what to do about it, if that is not a repair."""
    is_repairable = not isinstance(error, OutOfServiceError) or isinstance(error, DamagedError)
    return leveldb.reason(error) if is_repairable else str(error)


def _log_quarantine(name: bytes, source: Path) -> None:
    """Log what a server has put aside in a queue's directory."""
    items, tables = count_quarantined(source)
    if items or tables:
        log.warning(
            "kept of damage that a server has met; the queue is whole without it",
            queue=shown(name),
            items=items,
            tables=tables,
            path=str(source / DAMAGED_NAME),
            action=_DELETE,
        )


def _check_access(source: Path) -> None:
    """Raise JournalError if a server may not read and write a queue's directory."""
    for directory in (source, source / BLOBS_NAME):
        if directory.is_dir() and not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            number = errno.EROFS if os.statvfs(directory).f_flag & os.ST_RDONLY else errno.EACCES
            if number == errno.EACCES or not os.access(directory, os.R_OK | os.X_OK):
                raise leveldb.failure(f"cannot use {directory}", OSError(number, os.strerror(number)))


def _check_surroundings(data: Path) -> Iterator[Report]:
    """Log what is beside the queues that somebody should know of, and yield what is wrong with it."""
    Status(data, 0).load()
    try:
        Runs(data, 0).load()
    except StartError as error:
        yield Report("clock", [str(error)])
    for entry in sorted(data.iterdir()):
        if entry.name.startswith(DAMAGED_PREFIX):
            log.warning("kept by a repair", path=str(entry), action=_DELETE)
        elif entry.name.startswith(REPAIR_PREFIX):
            yield from _check_interrupted_repair(data, entry)
    for lost in sorted((data / LOG_NAME).glob(f"{LOST_PREFIX}*")):
        log.warning("a part of the log was put aside when it was damaged", path=str(lost), action=_DELETE)
    with contextlib.suppress(OSError):
        if any((data / TRASH_NAME).iterdir()):
            log.warning(
                "files of deleted queues are there yet",
                path=str(data / TRASH_NAME),
                action="start the server, which deletes them",
            )


def _check_interrupted_repair(data: Path, scratch: Path) -> Iterator[Report]:
    label = scratch.name.removeprefix(REPAIR_PREFIX)
    damaged = sorted(data.glob(f"{DAMAGED_PREFIX}{label}-[0-9]*"))
    if damaged and (scratch / "queue").exists() and not (data / label).exists():
        back = f"move {damaged[-1]} back to {data / label}, and repair again"
        yield Report(label, [f"a repair was cut off between two steps: {back}"])
    else:
        log.warning(
            "left by a repair that was cut off",
            path=str(scratch),
            action="repair the queue again, or delete it",
        )
