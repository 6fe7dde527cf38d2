"""How far the import of a file has come, in a small file beside it: so an import that was cut off goes on
there, however much later, and one that is done is not done twice by mistake.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from darner.errors import ToolError

# So often the disk has the position, too, at least.
_SYNC_S = 1.0


@dataclass
class Position:
    """Where an import of the export `identity` goes on.

    The records below `offset`, `number` of items, are done, and so are those at the offsets `ahead`.
    `is_clean`: of no other one it is unknown whether it was stored; `time_s` is when this was written. `salt`
    belongs to the ids of items: it tells an import that is done once more on purpose from the first.
    """

    identity: str
    offset: int = 0
    number: int = 0
    skipped: int = 0
    items: int = 0
    ahead: list[int] = field(default_factory=list)
    is_clean: bool = True
    is_done: bool = False
    time_s: float = 0
    salt: str = ""


class PositionFile:
    """The file of a position."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._synced_at = 0.0

    @classmethod
    def beside(cls, file: str, queue: bytes, servers: Sequence[str]) -> "PositionFile":
        """Return that of the import of a file into a queue of these servers."""
        where = hashlib.sha256(b" ".join([queue, *sorted(map(os.fsencode, servers))])).hexdigest()[:8]
        return cls(Path(f"{file}.import-{where}"))

    def load(self, identity: str) -> Position:
        """Return the position that was saved, or the beginning; ToolError if it is that of another export, or
        damaged; OSError."""
        try:
            text = self.path.read_text()
        except FileNotFoundError:
            return Position(identity)
        try:
            found = Position(**json.loads(text))
        except (ValueError, TypeError):
            raise ToolError(f"{self.path} is damaged: it should tell how far this import has come") from None
        if found.identity != identity:
            raise ToolError(f"{self.path} is of another export: delete it to import this one")
        return found

    def save(self, position: Position, *, is_last: bool = False) -> None:
        """Replace what was saved, in one step. OSError."""
        position.time_s = time.time()
        new = self.path.with_name(self.path.name + ".new")
        with new.open("w") as file:
            json.dump(asdict(position), file)
            file.flush()
            if is_last or time.monotonic() - self._synced_at > _SYNC_S:
                os.fsync(file.fileno())
                self._synced_at = time.monotonic()
        new.replace(self.path)
