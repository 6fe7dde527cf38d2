"""What a reply may have to wait for."""

from typing import Protocol

from darner.journal.wal_sync import Client


class Pending(Protocol):
    """Something under way, such as what a journal has still to write. It releases those in `held_back` once
    that is done, or enough of it."""

    held_back: list[Client]

    @property
    def is_backlogged(self) -> bool:
        """Whether who adds to it is to wait for it."""
