"""The status of the server: an operator may have it refuse sets, or all that clients do with items.

The status is a word in a file of the data directory, and so outlives the server. A stricter status comes into
force after a grace period, in which clients can turn to another server.
"""

from collections.abc import Callable
from pathlib import Path

import structlog

from darner.errors import JournalError, StatusError
from darner.journal import leveldb
from darner.journal.files import replace_file

log = structlog.get_logger()

# each refuses what the one before it refuses, and more
STATUSES = ("up", "readonly", "quiescent")
UP, READONLY, QUIESCENT = range(3)

FILE_NAME = ".status"


class Status:
    """The status of a server: `level` is what was asked for, `in_force` what holds for clients now."""

    def __init__(self, directory: Path, grace_ms: int) -> None:
        """Begin as `UP`: the file is read by `load`. `grace_ms` is how long a stricter status waits."""
        self._path = directory / FILE_NAME
        self.grace_ms = grace_ms
        self.level = self.in_force = UP
        self._due_ms = 0
        # told when fetches are refused from now on
        self.on_quiescent: Callable[[StatusError], None] = lambda _: None

    @property
    def name(self) -> str:
        """The status that was asked for, as a word."""
        return STATUSES[self.level]

    def load(self) -> None:
        """Take over the status that the file has, if there is one; it is in force at once."""
        try:
            name = self._path.read_text().strip()
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            name = leveldb.reason(error)
        if name not in STATUSES:
            log.error("cannot read the status, so it is up", file=str(self._path), found=name)
            return
        self.level = self.in_force = STATUSES.index(name)

    def change(self, level: int, now_ms: int) -> None:
        """Change the status to `level`. A stricter status comes into force by `enforce`, when the grace
        period is over.

        Raises JournalError if the file cannot be written; then nothing has changed.
        """
        self._write(STATUSES[level])
        self.level = level
        self._due_ms = now_ms + self.grace_ms
        if level < self.in_force:
            self.in_force = level

    def _write(self, name: str) -> None:
        try:
            replace_file(self._path, name.encode() + b"\n")
        except OSError as error:
            raise JournalError(f"cannot keep the status in {self._path}: {error.strerror}") from error

    def enforce(self, now_ms: int) -> bool:
        """Bring the status that was asked for into force if it is due; returns whether it came into force."""
        if self.in_force == self.level or now_ms < self._due_ms:
            return False
        self.in_force = self.level
        return True

    def check_sets(self) -> None:
        """Raise StatusError if sets, and all else that changes queues, are refused."""
        if self.in_force >= READONLY:
            raise StatusError(f"refused: the server is {STATUSES[self.in_force]}")

    def check_gets(self) -> None:
        """Raise StatusError if fetches are refused."""
        if self.in_force >= QUIESCENT:
            raise StatusError(f"refused: the server is {STATUSES[self.in_force]}")
