"""What darner logs of a single queue."""

from pathlib import Path

import structlog

from darner.errors import InternalError, JournalError
from darner.journal.journal import Journal
from darner.printable import shown

log = structlog.get_logger()


def _traceback(error: JournalError) -> dict[str, BaseException]:
    """Return what a log line about `error` has besides: where an internal error comes from."""
    cause = error.__cause__
    return {"exc_info": cause} if isinstance(error, InternalError) and cause is not None else {}


def log_out_of_service(name: bytes, error: JournalError) -> None:
    """Log that a queue cannot be served."""
    log.error(
        "queue out of service",
        queue=shown(name),
        reason=error.reason,
        action=error.action,
        **_traceback(error),
    )


def log_in_service(name: bytes) -> None:
    """Log that a queue is served again, or that its LevelDB is written again."""
    log.warning("queue back in service", queue=shown(name))


def log_unknown_setting(name: bytes, reason: str) -> None:
    """Log that a setting made at run time does not hold, for this darner does not know it."""
    log.error("a setting made at run time is left out", queue=shown(name), reason=reason)


def log_in_memory(name: bytes) -> None:
    """Log that a queue that is on disk is to be in memory by its settings."""
    log.warning(
        "queue is to be in memory, but lies on disk: it stays there",
        queue=shown(name),
        action="delete it, and it is in memory from then on",
    )


def log_failure(journal: Journal, error: JournalError) -> None:
    """Log that a journal cannot be written; or, if it can, that something about it could not be done."""
    if journal.failing is None:
        log.error(
            "upkeep failure, something of a queue stays as it was; it is tried again by itself",
            queue=shown(journal.name),
            reason=error.reason,
            action=error.action,
        )
        return
    log.error(
        "journal failure, nothing is taken in; what was is kept in the log",
        queue=shown(journal.name),
        reason=error.reason,
        action=error.action,
        **_traceback(error),
    )


def log_recovery(journal: Journal) -> None:
    """Log that a journal that could not be written can be written again."""
    log_in_service(journal.name)


def log_damage(journal: Journal, error: JournalError) -> None:
    """Log that an item of a queue cannot be read, nor those behind it."""
    log.error(
        "damage in a queue, what is behind it is not served",
        queue=shown(journal.name),
        reason=error.reason,
        action=error.action,
    )


def log_quarantine(journal: Journal, ids: str, reason: str, where: Path | None) -> None:
    """Log that the damaged items `ids` were put aside, to the file `where` if anything of them is left."""
    log.error(
        "damage put aside, what is behind it is served",
        queue=shown(journal.name),
        ids=ids,
        reason=reason,
        kept="nothing is left" if where is None else str(where),
    )
