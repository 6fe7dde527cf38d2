"""The errors of darner, by what the caller can do about them.

An error that is kept and raised again and again is raised `with_traceback(None)`: else each raise adds to its
traceback.
"""

import errno
import os
from typing import Any


class DarnerError(Exception):
    """The root of every error that darner raises on purpose."""


class ConfigError(DarnerError):
    """A setting is wrong: the operator has to change it."""


class StartError(DarnerError):
    """The server cannot start: the text says why and what to do."""


class RepairError(DarnerError):
    """A queue cannot be checked or repaired: the text says why, and nothing has changed."""


class BackupError(DarnerError):
    """No backup was made: the text says why, and nothing is left of it."""


class MigrationError(DarnerError):
    """The data of another server cannot be brought over: the text says why, and what to do."""


class ToolError(DarnerError):
    """A tool cannot go on: the text says why, and what to do."""


class NoQueueError(ToolError):
    """The server has no such queue."""


class UnavailableError(DarnerError):
    """The server cannot do now what a client asked for, through no fault of the client."""


# What an operator can do about an error of the disk, by its errno.
_ACTIONS = {
    errno.EACCES: "let the user that darner runs as read and write it; it is tried again by itself",
    errno.EPERM: "let the user that darner runs as read and write it; it is tried again by itself",
    errno.EROFS: "mount the file system to be written to; it is tried again by itself",
    errno.ENOSPC: "make room; it is tried again by itself",
    errno.EDQUOT: "raise the quota; it is tried again by itself",
    errno.EMFILE: "raise the limit of open files; it is tried again by itself",
    errno.ENFILE: "raise the system's limit of open files; it is tried again by itself",
}


class JournalError(UnavailableError):
    """A queue's journal could not be read or written: nothing of the operation was acknowledged."""

    @property
    def reason(self) -> str:
        """What happened, without the advice."""
        return str(self.args[0]) if self.args else ""

    @property
    def action(self) -> str:
        """What an operator can do about it."""
        found = (text for number, text in _ACTIONS.items() if os.strerror(number) in self.reason)
        return next(found, "make room or repair the disk; it is tried again by itself")


class OutOfServiceError(JournalError):
    """A queue is out of service until an operator acts; clients are told the advice, too."""

    def __str__(self) -> str:
        return f"{self.reason}: {self.action}"


class DamagedError(OutOfServiceError):
    """The files of a queue are damaged: they are not what was written."""

    action = "stop the server; then darner check says more, and darner repair saves what is left"


class NewerFormatError(OutOfServiceError, ValueError):
    """The files of a queue were written by a later version of darner. They are sound, and are left alone."""

    action = "use the newer darner that wrote it"


class ForeignError(OutOfServiceError):
    """The files of a queue are those of another program. They are sound, and are left alone."""

    action = "move it away, for this darner does not read it"


class MisplacedError(OutOfServiceError):
    """The files of a queue are not those of its journal: they were moved, or others put in their place."""

    action = "put back what it was; or move this one away, and delete the queue"


class VanishedError(MisplacedError):
    """The files of a queue are missing: the operator has to put them back, or to delete the queue."""

    action = "then it goes on by itself"

    def __str__(self) -> str:
        return self.reason


class InternalError(JournalError):
    """Something unforeseen went wrong with a queue; `__cause__` has the traceback."""

    action = "restart the server: what was acknowledged is in the log; and please report this"

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"internal error: {type(cause).__name__}: {cause}")
        self.__cause__ = cause


class DamagedItemError(JournalError):
    """The file of a large item is damaged: reading it once more does not help."""


class NotReadyError(JournalError):
    """A journal cannot answer yet, for it is getting past damage or many expired items.

    Ask again when it releases the clients in `Journal.held_back`. A look from an id on goes on from
    `next_id`, unless that is 0.
    """

    def __init__(self, text: str, journal: Any) -> None:
        super().__init__(text)
        self.journal = journal
        self.next_id = 0


class StatusError(UnavailableError):
    """The server's status forbids the operation."""


class RefusedError(DarnerError):
    """The settings of the queue do not let an item in."""


class QueueFullError(RefusedError):
    """The queue has as many items or bytes as it may have."""


class ItemTooLargeError(RefusedError):
    """The item is larger than the queue takes."""
