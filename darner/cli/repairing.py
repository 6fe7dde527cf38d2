"""The commands for a data directory that no server uses: `check` and `repair`."""

import os
import sys
from pathlib import Path

import click

from darner.cli.outcome import ErrorCount, say
from darner.errors import RepairError
from darner.log.lines import set_up_log
from darner.printable import shown
from darner.repair.check import check as check_queues
from darner.repair.repair import Repaired, repair_all
from darner.repair.repair import repair as repair_queue


@click.command(short_help="Look for damage in queues.")
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("queue", required=False)
def check(data: Path, queue: str | None) -> None:
    """Read all of the data directory DATA, or of its queue QUEUE, and say of each queue whether it is whole.

    Says what a server would say of it, too: whether it can be used, what is wrong with the log, and, on
    standard error, the warnings of a start. No server may use it meanwhile. Nothing is changed. The exit
    status is 0 if nothing is wrong. Damaged items that a server has put aside are said, but are nothing
    wrong: the queue is whole without them.

    \b
    Examples:
      darner check /var/lib/darner
      darner check /var/lib/darner work
    """
    logged = ErrorCount()
    failed = can_be_repaired = False
    for report in check_queues(data, None if queue is None else os.fsencode(queue)):
        failed |= bool(report.problems)
        can_be_repaired |= report.is_repairable
        text = "; ".join(report.problems) or f"ok, items={report.items} bytes={report.bytes}"
        say(f"{report.where}: {text}")
    if can_be_repaired:
        say("darner: darner repair DATA QUEUE saves what is left of a queue, --all of each", err=True)
    if failed or logged.count:
        sys.exit(1)


@click.command(short_help="Rebuild damaged queues from what is left.")
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("queue", required=False)
@click.option("--all", "all_", is_flag=True, help="Repair every queue that needs it.")
def repair(data: Path, queue: str | None, *, all_: bool) -> None:
    """Rebuild QUEUE in the data directory DATA from what is left of it, and say what is lost.

    No server may use it meanwhile. The damaged directory is kept beside the new one, as .damaged-QUEUE-1.
    The exit status is 0 if all is whole then.

    \b
    Examples:
      darner repair /var/lib/darner work
      darner repair /var/lib/darner --all
    """
    if all_ == (queue is not None):
        raise click.UsageError("give the name of a queue, or --all")
    set_up_log()
    failed = False
    if queue is not None:
        name = os.fsencode(queue)
        _say_repaired(name, repair_queue(data, name))
        return
    for name, outcome in repair_all(data):
        if isinstance(outcome, RepairError):
            failed = True
            say(f"{shown(name)}: {outcome}", err=True)
        else:
            _say_repaired(name, outcome)
    if failed:
        sys.exit(1)


def _say_repaired(name: bytes, repaired: Repaired) -> None:
    queue, figures = shown(name), f"items={repaired.items} bytes={repaired.bytes}"
    if repaired.damaged is None:
        say(f"{queue}: ok, nothing to repair, {figures}")
        return
    for text in repaired.losses:
        say(f"{queue}: {text}")
    say(f"{queue}: repaired, {figures}")
    say(f"{queue}: the damaged directory is {repaired.damaged}; delete it when it is of no more use")
