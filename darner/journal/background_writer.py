"""What a journal asks of the committer, which stands above it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from darner.environment.offload import Offload
from darner.errors import JournalError
from darner.journal.damage import Reporter
from darner.journal.database import Room


class BackgroundWriter(Room, Reporter, Protocol):
    """What a journal asks of the committer, which writes the batches of all journals."""

    offload: Offload
    # another number for each start of the machine; 0 if that is not known
    boot: int
    # called when a journal can be read on
    on_resume: Callable[[Any], None]
    # whether free space is short: what gives some back does not wait
    space_is_short: bool
    # whether it may soon be short: little should be on its way to LevelDB at a time
    space_is_scarce: bool

    def add(self, journal: Any) -> None:
        """Note that `journal` has something to be written, or to be tidied."""

    def discard(self, journal: Any) -> None:
        """Forget about `journal`."""

    def checkpoint(self, journal: Any) -> None:
        """Have what `journal` has staged written now."""

    def note_link(self, path: Path) -> None:
        """Note that this process made the file of a blob, which may not be on the disk yet."""

    def note_open(self, journal: Any) -> None:
        """Note that the LevelDB of `journal` is open."""

    def free(self, entries: dict[Any, Any]) -> None:
        """Free what nobody needs, which may be much."""

    def suspend(self, journal: Any, error: JournalError) -> None:
        """Have `journal` refuse changes until a write succeeds, for its LevelDB cannot be opened."""

    def mend(self, journal: Any, key: bytes) -> bool:
        """Have `journal` mend the tables of LevelDB that may have the first record from `key` on; return
        whether that is being done, or is to be tried again: not if it has just failed."""
