"""What can go wrong, by what the caller can do about it.

An error that is kept and raised again and again is raised `with_traceback(None)`: else each time adds to it.
"""


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


class FaultError(JournalError):
    """Something went wrong with a queue that nothing here provides for; `__cause__` has where."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"internal error: {type(cause).__name__}: {cause}")
        self.__cause__ = cause


class StatusError(UnavailableError):
    """The server's status forbids the operation."""


class RefusedError(DarnerError):
    """The settings of the queue do not let an item in."""


class QueueFullError(RefusedError):
    """The queue has as many items or bytes as it may have."""


class ItemTooLargeError(RefusedError):
    """The item is larger than the queue takes."""
