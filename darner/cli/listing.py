"""The command that lists queues: `queues`."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import click

from darner.cli import tables
from darner.cli.connecting import (
    NOTHING,
    SETTINGS,
    UNREACHABLE,
    Command,
    Seconds,
    each_server_options,
    epilog,
)
from darner.cli.outcome import FAILED, say
from darner.client.client import Client
from darner.client.errors import ConnectionFailedError
from darner.tools import listing
from darner.tools.overview import Overview
from darner.tools.watching import Watch

# So many things that are wrong are said, the worst ones.
MOST_TROUBLES = 10


def queues_options(seconds: Seconds, interval: float, help: str) -> Callable[[Command], Command]:
    """Return what adds the options of a command that shows queues; `interval` is the default of the one that
    `help` describes."""

    def add(command: Command) -> Command:
        for option in (
            each_server_options,
            click.option("--interval", type=seconds, default=interval, show_default=True, metavar="SECONDS",
                         help=help),
            click.option(
                "--sort", type=click.Choice(listing.SORTS), metavar="COLUMN",
                help=f"Column to sort by: {', '.join(listing.SORTS)}; figures from the greatest on.",
            ),
            click.argument("pattern", default="*"),
        ):  # fmt: skip
            command = option(command)
        return command

    return add


@click.command(
    short_help="List queues with their figures.",
    context_settings=SETTINGS,
    epilog=epilog(
        """
  darner queues
  darner queues 'mail*'
  darner queues --sort age | head
  darner queues --json --interval 0 | jq -r 'select(.items > 1000).queue'
  darner queues -s db1:22133 -s db2:22133
""",
        nothing="no queue of a name that matches PATTERN",
    ),
)
@queues_options(Seconds(3600), 1.0, "How long to count for the rates; with 0 there are none.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for each queue.")
def queues(
    clients: Mapping[str, Client], *, pattern: str, sort: str | None, interval: float, as_json: bool
) -> None:
    """List the queues whose names match PATTERN, as of a shell: * ? [abc].

    \b
    ITEMS  items that wait; BYTES is their size
    AGE    how long the item at the head has waited
    IN/S   items stored a second
    OUT/S  items that left for good a second: fetched, closed, expired, discarded
    WAIT   clients that wait for an item
    RESV   items that are reserved
    LAG    items that a cursor has still to read; each cursor has a line of its own

    A name is written as in the log, with bytes outside printable ASCII percent-encoded, and every command
    takes it so. At a terminal, what is wrong comes first.
    """
    watches = look(clients, interval)
    found = 0
    for overview in say_failures(watches):
        rows = listing.sort(listing.rows([overview], pattern), sort or "name")
        found += len(rows)
        if as_json:
            for row in rows:
                say(json.dumps(listing.as_json(row)))
        else:
            is_terminal = sys.stdout.isatty()
            write_table(overview, rows, with_head=is_terminal or len(watches) > 1, with_troubles=is_terminal)
    exit_if_failed(watches)
    if not found and pattern != "*":
        say("darner: no queue has a name that matches", err=True)
        sys.exit(NOTHING)


def look(clients: Mapping[str, Client], interval: float) -> Sequence[Watch]:
    """Ask all servers at once how they are, with the rates of so many seconds unless they are 0."""
    watches = [Watch(address, client) for address, client in clients.items()]
    with ThreadPoolExecutor(len(watches)) as pool:
        list(pool.map(Watch.look, watches))
        if interval and not all(watch.failure for watch in watches):
            time.sleep(interval)
            list(pool.map(Watch.look, watches))
    return watches


def say_failures(watches: Sequence[Watch]) -> Iterator[Overview]:
    """Give the servers that have answered; say why the others have not."""
    for watch in watches:
        if watch.failure is None:
            yield watch.overview
        else:
            say(f"darner: {watch.failure}", err=True)


def exit_if_failed(watches: Sequence[Watch]) -> None:
    """Exit if a server has not answered."""
    failures = [watch.failure for watch in watches if watch.failure is not None]
    if any(isinstance(failure, ConnectionFailedError) for failure in failures):
        sys.exit(UNREACHABLE)
    if failures:
        sys.exit(FAILED)


def write_table(
    overview: Overview, rows: Sequence[listing.Row], *, with_head: bool, with_troubles: bool
) -> None:
    """Write the queues of a server; before them a line on the server, and what is wrong with them."""
    names = {"", *(row.view.name for row in rows)}
    if with_head:
        tables.write(tables.summary(overview), bold=True)
    if with_troubles:
        troubles = [trouble for trouble in overview.troubles() if trouble.queue in names]
        for line in tables.trouble_lines(troubles, MOST_TROUBLES, with_server=False):
            tables.write(line, fg="red")
    for line in tables.lines(rows):
        tables.write(line)
