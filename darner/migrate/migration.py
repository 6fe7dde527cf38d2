"""A migration: what was surveyed is put in the new data directory, and what is there then is read back and
compared.

What a queue has already, after a kill, is compared with what the source has, item by item; then it goes on.
So nothing is missing and nothing is there twice. Until all is compared, a file keeps servers away from the
directory.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote_to_bytes

from darner.errors import MigrationError
from darner.journal.foreign_files import TITLES
from darner.migrate.reading import Reading, Tally
from darner.migrate.state_file import PlannedQueue, State, StateFile
from darner.migrate.steps import Steps
from darner.migrate.survey import Survey, Surveyed
from darner.migrate.target import Target
from darner.printable import shown
from darner.queues.queue import Queue


class Migration:
    """The migration of a source to `data`, which is not there, or empty, or has a part of this migration.

    `state` is that of one that was begun, None if none was; `is_over`: it was done before.
    """

    def __init__(self, survey: Survey, data: Path) -> None:
        """Raises MigrationError if `data` is no place for it, or if what is there is of another migration, or
        of the source as it was before; OSError."""
        self._survey = survey
        self._data = data
        self._file = StateFile(data)
        target = data.resolve()
        if target.is_relative_to(survey.path) or survey.path.is_relative_to(target):
            raise MigrationError(f"{data} and {survey.path} must not lie in each other")
        last = self._file.load_last()
        self.is_over = last is not None
        self.state = last or self._file.load()
        if self.state is not None:
            self._check_same(self.state)
        elif data.exists() and any(not entry.name.startswith(".") for entry in data.iterdir()):
            raise MigrationError(f"{data} is not empty: give a directory that is, or is not there")

    def _check_same(self, state: State) -> None:
        survey = self._survey
        if (state.program, state.source) != (survey.program, str(survey.path)):
            raise MigrationError(
                f"{self._data} has what was brought over from {state.source}, of {TITLES[state.program]}:"
                " give another directory"
            )
        if state.source_mark != survey.mark:
            raise MigrationError(
                f"{survey.path} has changed since the migration to {self._data} began{self._anew}"
            )
        if (state.skips_damaged, state.skipped) != (survey.options.skips_damaged, survey.skipped):
            raise MigrationError(
                f"the migration to {self._data} was begun with other options: give the same ones;"
                " or delete it, and begin anew"
            )

    @property
    def _anew(self) -> str:
        return "" if self.is_over else f": delete {self._data}, and begin anew"

    def plan(self, surveyed: Sequence[Surveyed], began_ms: int) -> State:
        """Return what a migration of what was surveyed sets out to do."""
        survey = self._survey
        planned = [each.planned for each in surveyed]
        return State(
            survey.program,
            str(survey.path),
            survey.mark,
            began_ms,
            survey.skipped,
            survey.options.skips_damaged,
            planned,
        )

    def copy(self, state: State, steps: Steps) -> None:
        """Put all items in the data directory that are not there yet.

        Raises Stopped; MigrationError if what is there is not of this migration, or if the source has
        changed; StartError if the directory cannot be used; JournalError if it cannot be written; OSError.
        """
        queues = self._survey.queues()
        with Target(self._data) as target:
            if self.state is None:
                if target.names or self._file.load() is not None:
                    raise MigrationError(
                        f"{self._data} is not empty: give a directory that is, or is not there"
                    )
                self._file.begin(state)
            for planned in state.queues:
                name = unquote_to_bytes(planned.name)
                queue = target.queue(name)
                self._copy(target, queue, Reading(queues[name], state.began_ms, _ignore), steps)
                target.place_cursors(queue, queues[name].places())
        if self._survey.current_mark() != self._survey.mark:
            raise MigrationError(f"{self._survey.path} has changed meanwhile: stop what uses it{self._anew}")

    def _copy(self, target: Target, queue: Queue, reading: Reading, steps: Steps) -> None:
        items = iter(reading)
        there = target.items(queue)
        for item in itertools.islice(items, queue.journal.state.items):
            if next(there, None) != item:
                raise MigrationError(
                    f"{self._data} has other items in {shown(queue.name)} than the source{self._anew}"
                )
            steps.take()
        there.close()
        for item in items:
            target.put(queue, item)
            steps.take()

    def check(self, state: State, steps: Steps) -> None:
        """Read all that was written back, and compare it with what was surveyed; then the directory is a
        server's.

        Raises Stopped, MigrationError if anything differs, StartError, OSError.
        """
        sources = self._survey.queues()
        with Target(self._data) as target:
            if set(sources) != set(target.names):
                raise MigrationError(f"{self._data} has other queues than the source{self._anew}")
            for planned in state.queues:
                queue = target.queue(unquote_to_bytes(planned.name))
                self._check(target, queue, planned, steps)
                target.check_cursors(queue, sources[queue.name].places())
        self._file.end()

    def _check(self, target: Target, queue: Queue, planned: PlannedQueue, steps: Steps) -> None:
        tally = Tally()
        for item in target.items(queue):
            tally.add(item)
            steps.take()
        if (tally.items, tally.bytes, tally.checksum) != (planned.items, planned.bytes, planned.checksum):
            raise MigrationError(
                f"the queue {planned.name} of {self._data} has {tally.items} items, {tally.bytes} bytes,"
                f" with the checksum {tally.checksum}; it should have {planned.items}, {planned.bytes} bytes,"
                f" with {planned.checksum}{self._anew}"
            )


def _ignore(_: str) -> None:
    """Let damage go that the survey has told."""
