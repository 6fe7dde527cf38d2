"""What the server lets clients do: an operator may have it take no more sets, or nothing at all.

The status is a word in a file of the data directory, and so outlives the server. A stricter one comes into
force when clients have had a grace period to go elsewhere.
"""

from pathlib import Path

import structlog

from darner.errors import JournalError, StatusError
from darner.journal import leveldb
from darner.journal.files import replace_file

log = structlog.get_logger()

# each forbids what the one before it does, and more
STATUSES = ("up", "readonly", "quiescent")
UP, READONLY, QUIESCENT = range(3)

FILE_NAME = ".status"


class Status:
    """The status of a server: `level` is what was asked for, `in_force` what clients feel."""

    def __init__(self, directory: Path, grace_ms: int) -> None:
        """Nothing is read yet: see `load`. `grace_ms` is how long a stricter status waits."""
        self._path = directory / FILE_NAME
        self.grace_ms = grace_ms
        self.level = self.in_force = UP
        self._due_ms = 0

    @property
    def name(self) -> str:
        """What was asked for, as a word."""
        return STATUSES[self.level]

    def load(self) -> None:
        """Take the status the server had when it ended, if one was kept; it is in force at once."""
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
        """Have another status. A stricter one comes into force by `enforce`, when the grace period is over.

        Raises JournalError if it cannot be kept; then nothing has changed.
        """
        self._keep(STATUSES[level])
        self.level = level
        self._due_ms = now_ms + self.grace_ms
        if level < self.in_force:
            self.in_force = level

    def _keep(self, name: str) -> None:
        try:
            replace_file(self._path, name.encode() + b"\n")
        except OSError as error:
            raise JournalError(f"cannot keep the status in {self._path}: {error.strerror}") from error

    def enforce(self, now_ms: int) -> bool:
        """Bring what was asked for into force if it is due; returns whether that was just now."""
        if self.in_force == self.level or now_ms < self._due_ms:
            return False
        self.in_force = self.level
        return True

    def check_sets(self) -> None:
        """Raises StatusError if what changes queues is refused."""
        if self.in_force >= READONLY:
            raise StatusError(f"refused: the server is {STATUSES[self.in_force]}")

    def check_gets(self) -> None:
        """Raises StatusError if fetching is refused."""
        if self.in_force >= QUIESCENT:
            raise StatusError(f"refused: the server is {STATUSES[self.in_force]}")
