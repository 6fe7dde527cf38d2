"""Who is told of each job."""

from typing import Protocol


class Observer(Protocol):
    """Whoever counts jobs."""

    def note_start(self, queue: str) -> None:
        """Take note that a job has begun."""

    def note_end(self, queue: str, outcome: str, seconds: float) -> None:
        """Take note that it has ended: `handled`, `failed`, `retried` (the function asked for that), or
        `lost` (its item went back meanwhile, and will be done again)."""


class Nobody:
    """The observer where nobody counts."""

    def note_start(self, queue: str) -> None:
        """Do nothing."""

    def note_end(self, queue: str, outcome: str, seconds: float) -> None:
        """Do nothing."""
