"""The errors of a worker that whoever starts it has to see."""

from darner.errors import DarnerError


class WorkerError(DarnerError):
    """The worker cannot start, or cannot go on: the text says why, in one line."""
