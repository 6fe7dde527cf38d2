"""What can go wrong, by what the caller can do about it."""

from typing import Any


class DarnerError(Exception):
    """The root of every error darner raises on purpose."""


class ConfigError(DarnerError):
    """A setting is wrong: the operator has to change it."""


class StartError(DarnerError):
    """The server cannot start: the text says why and what to do."""


class RepairError(DarnerError):
    """A queue cannot be checked or repaired: the text says why, and nothing has changed."""


class UnavailableError(DarnerError):
    """The server cannot do now what a client asked for, through no fault of the client."""


class JournalError(UnavailableError):
    """A queue's journal could not be read or written: nothing of the operation was acknowledged."""


class DamagedItemError(JournalError):
    """The file of an item is damaged: to read it once more is of no use."""


class MendingError(JournalError):
    """A journal has met damage, and is about to be read on: ask again once it lets those go on who wait for
    room in it (`Journal.crowding`)."""

    def __init__(self, text: str, journal: Any) -> None:
        super().__init__(text)
        self.journal = journal


class StatusError(UnavailableError):
    """The server's status forbids the operation."""


class RefusedError(DarnerError):
    """The settings of the queue do not let an item in."""


class QueueFullError(RefusedError):
    """The queue has as many items or bytes as it may have."""


class ItemTooLargeError(RefusedError):
    """The item is larger than the queue takes."""
