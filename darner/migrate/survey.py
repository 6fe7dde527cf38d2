"""The survey of a source: all of it is read once, and summed up, before anything is written."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from darner._proto import valid_name
from darner.config.kinds import NAME_RULE
from darner.errors import MigrationError
from darner.journal.foreign_files import KESTREL, ORIGINAL, SIBERITE, TITLES
from darner.migrate.in_use import user_of
from darner.migrate.kestrel import Kestrel
from darner.migrate.original import Original
from darner.migrate.reading import Reading, Tally
from darner.migrate.siberite import Siberite
from darner.migrate.source import Source, SourceQueue
from darner.migrate.state_file import PlannedQueue
from darner.migrate.steps import Steps
from darner.printable import shown

# The readers of each program's data.
_SOURCES: dict[str, Callable[[Path], Source]] = {ORIGINAL: Original, KESTREL: Kestrel, SIBERITE: Siberite}


@dataclass
class Surveyed:
    """What was found of a queue. `damage`: what is damaged; `refusal`: why it cannot come over, "" if it
    can."""

    queue: SourceQueue
    planned: PlannedQueue
    damage: list[str] = field(default_factory=list)
    refusal: str = ""


class Options(NamedTuple):
    """What is to be done: the queues that are left out, and whether what is sound of damaged ones is brought
    over."""

    skipped: frozenset[bytes] = frozenset()
    skips_damaged: bool = False


class Survey:
    """The data directory `path` of a program, as `darner migrate --from` calls it, and how it is to be read.

    `mark` stands for its files as they are now.
    """

    def __init__(self, program: str, path: Path, options: Options) -> None:
        """Raises MigrationError if there is no such directory, OSError."""
        if not path.is_dir():
            raise MigrationError(f"{path} is no directory")
        self.program = program
        self.path = path.resolve()
        self.options = options
        self.mark = self.current_mark()
        self._source = _SOURCES[program](path)

    @property
    def title(self) -> str:
        """What people call the program."""
        return TITLES[self.program]

    @property
    def skipped(self) -> list[str]:
        """The names of the queues that are left out, percent-encoded."""
        return sorted(map(shown, self.options.skipped))

    @property
    def user(self) -> str:
        """Who has the source in use, "" if nobody is known to."""
        return user_of(self.path)

    def current_mark(self) -> str:
        """Return what stands for the files as they are now: their names, sizes and times. Raises OSError."""
        mark = hashlib.blake2b(digest_size=16)
        for directory, inside, names in os.walk(self.path):
            inside.sort()
            for name in sorted(names):
                path = Path(directory) / name
                status = path.lstat()
                text = f"{path.relative_to(self.path)}\0{status.st_size}\0{status.st_mtime_ns}\0"
                mark.update(os.fsencode(text))
        return mark.hexdigest()

    def strays(self) -> Sequence[str]:
        """Return what is in the source and is no queue. Raises OSError."""
        return self._source.strays()

    def queues(self) -> dict[bytes, SourceQueue]:
        """Return the queues that are not left out, by name. Raises MigrationError if one that is to be left
        out is not there, or there is none at all; OSError."""
        queues = {queue.name: queue for queue in self._source.queues()}
        if not queues:
            raise MigrationError(f"{self.path} has no queues of {self.title}")
        if unknown := self.options.skipped - queues.keys():
            raise MigrationError(f"{self.path} has no queue {', '.join(map(shown, sorted(unknown)))}")
        return {name: queue for name, queue in queues.items() if name not in self.options.skipped}

    def read(self, began_ms: int, steps: Steps) -> list[Surveyed]:
        """Read all of the source, and return what its queues have; what had expired at `began_ms` is left
        out.

        Raises as `queues`, and Stopped.
        """
        return [_read(queue, began_ms, steps) for queue in self.queues().values()]


def _read(queue: SourceQueue, began_ms: int, steps: Steps) -> Surveyed:
    found = Surveyed(queue, PlannedQueue(shown(queue.name)))
    if not valid_name(queue.name):
        found.refusal = f"no queue of this darner can have its name: that has {NAME_RULE}"

    def note(text: str) -> None:
        if text not in found.damage:
            found.damage.append(text)

    reading = Reading(queue, began_ms, note)
    tally = Tally()
    try:
        for item in reading:
            tally.add(item)
            steps.take()
    except MigrationError as error:
        found.refusal = str(error)
    planned = found.planned
    planned.items, planned.bytes, planned.checksum = tally.items, tally.bytes, tally.checksum
    planned.expired = reading.expired
    return found
