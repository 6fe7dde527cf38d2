"""The command that moves items from one queue to another: `move`."""

import json
import sys
from collections.abc import Mapping

import click

from darner.cli.connecting import QUEUE, SETTINGS, each_server_options, epilog, for_each, json_option
from darner.cli.outcome import INTERRUPTED, say
from darner.cli.progress import progress, stopping
from darner.client.client import Client
from darner.client.errors import BadRequestError
from darner.errors import DarnerError
from darner.tools.emptying import Emptied
from darner.tools.moving import Move, check_names


@click.command(
    short_help="Move items from one queue to another.",
    context_settings=SETTINGS,
    epilog=epilog("""
  darner move orders.failed orders --dry-run  how many there are
  darner move orders.failed orders -n 1       one, to see whether it works now
  darner move orders.failed orders            the others
"""),
)
@click.argument("source", type=QUEUE)
@click.argument("target", type=QUEUE)
@click.option("-n", "--count", type=click.IntRange(min=1), metavar="N", help="How many, at most.")
@click.option("--dry-run", is_flag=True, help="Say what would be moved, and move nothing.")
@json_option
@each_server_options
def move(
    clients: Mapping[str, Client],
    source: str,
    target: str,
    *,
    count: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Move what waits in SOURCE now to the end of TARGET, in order; on each server for itself.

    No item is lost, and none is doubled: if the move is cut off, at whatever moment, the same command goes
    on. Do that within dedup_window of TARGET (5 minutes unless it is set). Flags and expiry go along;
    attempts begin at 0. Items that come to SOURCE meanwhile stay there.
    """
    try:
        check_names(source, target)
    except BadRequestError as error:
        raise click.UsageError(str(error)) from None
    left = count

    def ask(address: str, client: Client) -> None:
        nonlocal left
        if left == 0:
            return
        job = Move(client, source, target, left)
        done = job.emptying.done
        for warning in job.warnings:
            say(f"darner: warning: {warning}", err=True)
        if dry_run:
            done.items, done.bytes = job.emptying.count()
            _tell(done, f"{address}: " if len(clients) > 1 else "", "would move", as_json=as_json)
            return
        with progress(f"{source} to {target}", done.expected) as tell, stopping() as is_stopped:
            try:
                job.emptying.run(lambda: tell(done.items), is_stopped)
            except DarnerError:
                say(f"darner: {done.items} items were moved from {source} to {target} before this:", err=True)
                raise
            finally:
                if done.unsettled:
                    say(
                        f"darner: {done.unsettled} more are in {target}, and perhaps still in {source}: the"
                        " same command settles that, within dedup_window",
                        err=True,
                    )
            was_stopped = is_stopped()
        left = None if left is None else left - done.items
        _tell(done, f"{address}: " if len(clients) > 1 else "", "moved", as_json=as_json)
        if was_stopped:
            sys.exit(INTERRUPTED)

    for_each(clients, ask)


def _tell(done: Emptied, where: str, verb: str, *, as_json: bool) -> None:
    if as_json:
        figures = {"server": done.server, "items": done.items, "bytes": done.bytes}
        say(json.dumps(figures | {"unsettled": done.unsettled, "doubled": sorted(done.doubled)}))
        return
    say(f"{where}{verb} {done.items} items, {done.bytes} bytes")
    if done.doubled:
        say(
            f"darner: {len(done.doubled)} items were taken back from this move (open_timeout) after they were"
            f" set, and another reader has them, too: {', '.join(map(str, sorted(done.doubled)))}",
            err=True,
        )
