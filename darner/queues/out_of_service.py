"""The queues that cannot be served, and why."""

from darner.errors import JournalError
from darner.journal.journal import Journal


class OutOfService:
    """The queues that are out of service.

    The directory of a queue could not be opened, which is tried again; or its journal was set aside after an
    internal error, and then only the next start opens it.
    """

    def __init__(self) -> None:
        # why each is out of service
        self.errors: dict[bytes, JournalError] = {}
        # the journals of those that were set aside, and whether these are on disk
        self._set_aside: dict[bytes, tuple[Journal, bool]] = {}

    def check(self, name: bytes) -> None:
        """Raise why the queue `name` is out of service, if it is."""
        error = self.errors.get(name)
        if error is not None:
            raise error.with_traceback(None)

    def set_aside(self, journal: Journal, error: JournalError, *, is_durable: bool) -> None:
        """Take a queue out of service until the next start."""
        self._set_aside[journal.name] = journal, is_durable
        self.errors[journal.name] = error

    def delete_set_aside(self, name: bytes) -> bool:
        """Forget the queue `name` if it was set aside; returns whether it was.

        Raises the queue's error if it is on disk: only the next start knows what state it is in.
        """
        if name not in self._set_aside:
            return False
        _, is_durable = self._set_aside[name]
        if is_durable:
            self.check(name)
        del self._set_aside[name], self.errors[name]
        return True

    def names_to_retry(self) -> list[bytes]:
        """Return the names of the queues to be tried again, in the order of when they were tried last."""
        return [name for name in self.errors if name not in self._set_aside]

    @property
    def journals(self) -> list[Journal]:
        """The journals that were set aside."""
        return [journal for journal, _ in self._set_aside.values()]
