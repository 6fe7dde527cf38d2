"""The commands that change a server or whole queues: `status`, `configure`, `flush` and `delete`."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence

import click

from darner.cli.connecting import (
    NOTHING,
    QUEUE,
    SETTINGS,
    Command,
    each_server_options,
    epilog,
    for_each,
    json_option,
)
from darner.cli.outcome import FAILED, say
from darner.client.client import Client
from darner.client.errors import NotPermittedError
from darner.client.protocol import STATUSES
from darner.tools.listing import label


def _queues_command(short_help: str, examples: str) -> Callable[[Command], click.Command]:
    """Return what makes a command of a function that changes whole queues."""

    def decorate(command: Command) -> click.Command:
        for option in (
            each_server_options,
            click.option("-y", "--yes", is_flag=True, help="Do not ask."),
            click.argument("queues", nargs=-1, required=True, type=QUEUE, metavar="QUEUE..."),
        ):
            command = option(command)
        return click.command(
            short_help=short_help,
            context_settings=SETTINGS,
            epilog=epilog(examples, nothing="a server has no such queue"),
        )(command)

    return decorate


def check_terminal() -> None:
    """Exit unless there is a terminal to ask at."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        say("darner: there is no terminal to ask at: say --yes", err=True)
        sys.exit(2)


@click.command(
    short_help="Say or set what clients may do.",
    context_settings=SETTINGS,
    epilog=epilog("""
  darner status
  darner status readonly                      before maintenance: nothing new comes
  darner status up
"""),
)
@click.argument("wanted", required=False, type=click.Choice(STATUSES), metavar="[up|readonly|quiescent]")
@json_option
@each_server_options
def status(clients: Mapping[str, Client], *, wanted: str | None, as_json: bool) -> None:
    """Say the status of each server, or set it. It is kept over restarts.

    \b
    up         clients may do all
    readonly   sets are refused
    quiescent  sets and fetches are refused

    A stricter status comes into force after a pause, the setting status_change_grace_period.
    """

    def ask(address: str, client: Client) -> None:
        found = client.status(wanted)
        if as_json:
            say(json.dumps({"server": address, "status": found}))
        else:
            say(f"{address}: {found}" if len(clients) > 1 else found)

    for_each(clients, ask)


@click.command(
    short_help="Change settings of a queue at run time.",
    context_settings=SETTINGS,
    epilog=epilog("""
  darner configure reply.1 max_queue_age=1m max_open_reads=100
  darner configure reply.1 max_open_reads=    forget what was configured
"""),
)
@click.argument("queue", type=QUEUE)
@click.argument("settings", nargs=-1, metavar="[SETTING=VALUE]...")
@each_server_options
def configure(clients: Mapping[str, Client], *, queue: str, settings: Sequence[str]) -> None:
    """Change settings of a queue, made if it is not there. They are kept until the queue is deleted.

    Values are those of the configuration file, which takes precedence.
    """
    words = dict(word.partition("=")[::2] for word in settings)
    if len(words) < len(settings) or not all("=" in word for word in settings):
        raise click.UsageError("give each setting once, as SETTING=VALUE, or SETTING= to forget it")
    for_each(clients, lambda _, client: client.configure(queue, **words))


@_queues_command(
    "Discard what waits in queues.",
    """
  darner flush work
  darner flush --yes mail mail.errors
""",
)
def flush(clients: Mapping[str, Client], *, queues: Sequence[str], yes: bool) -> None:
    """Discard all items that wait in the queues, for good. The queues live on; what is reserved is left.

    Asks before it does so, and says how many items there are.
    """
    _for_queues(clients, queues, "discard", "flushed", Client.flush, yes=yes)


@_queues_command(
    "Drop queues.",
    """
  darner delete work
  darner delete --yes 'orders/cursor=billing'
""",
)
def delete(clients: Mapping[str, Client], *, queues: Sequence[str], yes: bool) -> None:
    """Drop the queues with all their items and files, for good; of QUEUE/cursor=NAME, the cursor's place.

    Asks before it does so, and says how many items there are.
    """
    _for_queues(clients, queues, "delete", "deleted", Client.delete, yes=yes)


def _for_queues(
    clients: Mapping[str, Client],
    queues: Sequence[str],
    verb: str,
    done: str,
    do: Callable[[Client, str], None],
    *,
    yes: bool,
) -> None:
    """Do something to queues on each server, after asking."""
    if not yes:
        check_terminal()

    def ask(address: str, client: Client) -> None:
        items = _items(client, queues)
        if items and not yes:
            what = ", ".join(f"{label(name)} ({count} items)" for name, count in items.items())
            if not click.confirm(f"{address}: {verb} {what}?", err=True):
                say(f"darner: {address}: nothing is {done}", err=True)
                sys.exit(FAILED)
        for name in items:
            do(client, name)
            say(f"{address}: {done} {label(name)}")
        missing = [name for name in queues if name not in items]
        for name in missing:
            say(f"darner: {address} has no {label(name)}", err=True)
        if missing:
            sys.exit(NOTHING)

    for_each(clients, ask)


def _items(client: Client, queues: Sequence[str]) -> dict[str, int | str]:
    """Return how many items each of these queues and cursors has; those that are not there are left out."""
    try:
        found = client.queues()
    except NotPermittedError:
        return dict.fromkeys(queues, "?")  # to see figures takes more than to change this queue
    items: dict[str, int | str] = {}
    for name in queues:
        parent, is_cursor, cursor = name.partition("/cursor=")
        stats = found.get(parent)
        if stats is not None and not is_cursor:
            items[name] = stats.items
        elif stats is not None and cursor in stats.cursor_lags:
            items[name] = stats.cursor_lags[cursor]
    return items
