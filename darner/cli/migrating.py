"""The command `migrate`."""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from darner.cli.outcome import FAILED, INTERRUPTED, say
from darner.cli.progress import progress, stopping
from darner.errors import MigrationError
from darner.journal.foreign_files import TITLES
from darner.log.lines import set_up_log
from darner.migrate.migration import Migration
from darner.migrate.state_file import PlannedQueue
from darner.migrate.steps import Steps, Stopped
from darner.migrate.survey import Options, Survey, Surveyed


@click.command(short_help="Bring over the data of another server.")
@click.option(
    "--from", "program", type=click.Choice(list(TITLES)), required=True,
    help="Whose data SRC is: that of the original darner, of Kestrel 2.1 to 2.4, or of siberite.",
)  # fmt: skip
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.option("--to", "data", metavar="DATA", type=click.Path(path_type=Path), help="The new data directory.")
@click.option("--dry-run", is_flag=True, help="Read all of SRC, say what it has, and write nothing.")
@click.option(
    "--skip", metavar="QUEUE", multiple=True, help="Leave this queue out; may be given several times."
)
@click.option("--skip-damaged", is_flag=True, help="Bring over what is sound of damaged queues.")
@click.option("--json", "as_json", is_flag=True, help="Say what was found, or done, as a JSON object.")
def migrate(
    program: str,
    source: Path,
    data: Path | None,
    *,
    dry_run: bool,
    skip: Sequence[str],
    skip_damaged: bool,
    as_json: bool,
) -> None:
    """Bring the queues in SRC, the data directory of another server, over to DATA, a new one.

    Stop that server first. SRC is opened to be read only, and never changed. No server can use DATA before
    all of it was read back and compared with SRC. If the command is cut off, at whatever moment, it goes on
    when it is given once more. docs/migrating.md says what differs, and how to move without a downtime.

    \b
    Examples:
      darner migrate --from kestrel /var/spool/kestrel --dry-run
      darner migrate --from kestrel /var/spool/kestrel --to /var/lib/darner
      darner --data /var/lib/darner

    \b
    Exit status:
      0    all is there, or could be
      1    something cannot come over, or failed, and was said
      2    the command line is wrong
      130  interrupted: the same command goes on
    """
    if data is None and not dry_run:
        raise click.UsageError("give --to DATA, or --dry-run")
    set_up_log()
    survey = Survey(program, source, Options(frozenset(map(os.fsencode, skip)), skip_damaged))
    migration = None if data is None else Migration(survey, data)
    with stopping() as is_stopped:
        command = _Command(survey, is_stopped, as_json=as_json)
        try:
            if migration is None or dry_run:
                command.look()
            else:
                command.run(migration, str(data))
        except Stopped:
            say("darner: interrupted: the same command goes on", err=True)
            sys.exit(INTERRUPTED)


class _Command:
    """One run of the command."""

    def __init__(self, survey: Survey, is_stopped: Callable[[], bool], *, as_json: bool) -> None:
        self._survey = survey
        self._is_stopped = is_stopped
        self._as_json = as_json
        self._began_ms = int(time.time() * 1000)

    def look(self) -> None:
        """Say what there is, and exit with 1 if not all of it can come over."""
        survey = self._survey
        if user := survey.user:
            say(
                f"darner: warning: {user} has {survey.path} in use: the figures are of no one moment",
                err=True,
            )
        found = self._read()
        self._tell(found)
        if self._is_refused(found):
            sys.exit(FAILED)

    def run(self, migration: Migration, data: str) -> None:
        """Bring over what there is."""
        state = migration.state
        if migration.is_over and state is not None:
            self._done(f"{data} has it all already, from", state.queues)
            return
        if user := self._survey.user:
            raise MigrationError(f"{user} has {self._survey.path} in use: stop that server first")
        if state is None:
            found = self._read()
            if self._is_refused(found):
                self._tell(found)
                raise MigrationError(
                    "nothing was brought over: --skip leaves a queue out, --skip-damaged takes what is sound"
                )
            state = migration.plan(found, self._began_ms)
        else:
            say("darner: going on with what was begun", err=True)
        total = sum(queue.items for queue in state.queues)
        with progress("bring over", total) as tell:
            migration.copy(state, Steps(tell, self._is_stopped))
        with progress("check", total) as tell:
            migration.check(state, Steps(tell, self._is_stopped))
        self._done(f"{data} is checked, and has from", state.queues)

    def _read(self) -> list[Surveyed]:
        with progress("read", None) as tell:
            return self._survey.read(self._began_ms, Steps(tell, self._is_stopped))

    def _is_refused(self, found: Sequence[Surveyed]) -> bool:
        skips_damaged = self._survey.options.skips_damaged
        return any(each.refusal or (each.damage and not skips_damaged) for each in found)

    def _tell(self, found: Sequence[Surveyed]) -> None:
        """Say what each queue has."""
        strays = self._survey.strays()
        if self._as_json:
            queues = [
                asdict(each.planned)
                | {"notes": list(each.queue.notes), "damage": each.damage, "refusal": each.refusal}
                for each in found
            ]
            click.echo(
                json.dumps({"source": str(self._survey.path), "queues": queues, "strays": list(strays)})
            )
            return
        for each in found:
            planned = each.planned
            found_there = f"cannot come over: {each.refusal}" if each.refusal else _figures([planned])
            say(f"{planned.name}: {found_there}")
            for text in each.queue.notes:
                say(f"{planned.name}: {text}")
            for text in each.damage:
                say(f"{planned.name}: damaged: {text}")
        for text in strays:
            say(f"{text}: it is left out")
        survey = self._survey
        figures = _figures([each.planned for each in found])
        say(f"{survey.path}, of {survey.title}, has {len(found)} queues, {figures}")

    def _done(self, what: str, queues: Sequence[PlannedQueue]) -> None:
        if self._as_json:
            done = {"source": str(self._survey.path), "queues": [asdict(queue) for queue in queues]}
            click.echo(json.dumps(done))
        else:
            say(f"{what} {self._survey.path}: {len(queues)} queues, {_figures(queues)}")


def _figures(queues: Sequence[PlannedQueue]) -> str:
    items = sum(queue.items for queue in queues)
    size = sum(queue.bytes for queue in queues)
    expired = sum(queue.expired for queue in queues)
    rest = f"; {expired} more have expired, and are left out" if expired else ""
    return f"{items} items, {size} bytes{rest}"
