"""What a migration has set out to do, in a file of the data directory that it writes: so one that was cut off
goes on, and no server takes a part of it for the whole."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from darner.errors import MigrationError
from darner.journal.files import replace_file, sync_directory
from darner.queues.data_directory import MIGRATED_NAME, MIGRATING_NAME


@dataclass
class PlannedQueue:
    """What a queue has to come to: its name percent-encoded, its items and bytes, a checksum over all of
    them; and how many items had expired and are left out."""

    name: str
    items: int = 0
    bytes: int = 0
    checksum: str = ""
    expired: int = 0


@dataclass
class State:
    """A migration: from what, with which options, from when on; and what is to come of it.

    `source_mark` stands for the files of the source as they were. What had expired at `began_ms` is left out.
    """

    program: str
    source: str
    source_mark: str
    began_ms: int
    skipped: list[str]
    skips_damaged: bool
    queues: list[PlannedQueue] = field(default_factory=list)


class StateFile:
    """The file of the state in a data directory: of a migration that goes on, or of one that is over."""

    def __init__(self, data: Path) -> None:
        self._going_on = data / MIGRATING_NAME
        self._over = data / MIGRATED_NAME

    def load(self) -> State | None:
        """Return the migration that goes on, None if none does. Raises MigrationError if the file is
        damaged."""
        return _load(self._going_on)

    def load_last(self) -> State | None:
        """Return the migration that is over, None if there was none. Raises MigrationError if the file is
        damaged."""
        return _load(self._over)

    def begin(self, state: State) -> None:
        """Write the file. Raises OSError."""
        replace_file(self._going_on, json.dumps(asdict(state)).encode())

    def end(self) -> None:
        """Note that the migration is over. Raises OSError."""
        self._going_on.replace(self._over)
        sync_directory(self._over.parent)


def _load(path: Path) -> State | None:
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    try:
        state = State(**json.loads(text))
        state.queues = [PlannedQueue(**queue) for queue in state.queues]  # type: ignore[arg-type]
    except (ValueError, TypeError):
        raise MigrationError(f"{path} is damaged: delete {path.parent}, and begin anew") from None
    return state
