"""The command `darner work`, which is `python -m darner.work` as well."""

import functools
import logging
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from darner.errors import DarnerError
from darner.log.lines import choose_log_format, set_up_log
from darner.printable import printable
from darner.work.server_option import server_option
from darner.work.settings import POOLS, Settings
from darner.work.worker import Worker

UNITS_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}


class _Seconds(click.ParamType[float]):
    """A time with its unit, in seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?) ?(ms|s|m|h)", value)
        if found is None:
            self.fail(f"{value!r} is no time, such as 500ms, 30s, 5m or 1h", param, ctx)
        return float(found[1]) * UNITS_S[found[2]]


EPILOG = """\b
Examples:
  darner work shop.mail:send --queue mail
  darner work shop.mail:send --queue urgent --queue normal --concurrency 16
  darner work shop.images:scale --queue images --pool processes --concurrency 4 --codec json
  darner work shop.hooks:call --queue hooks --pool asyncio --concurrency 200 --server darner://10.0.0.5

\b
The function is called with an item: its value, queue, id, and attempts (how often it has come back).
  it returns          the item is done, and is removed
  it raises           the item comes again after a pause, and goes to the dead letter queue after max_attempts
  it raises Retry(s)  the item comes again after s seconds (from darner.work import Retry)

\b
Signals:
  TERM, INT   take nothing more, finish what is in progress, and end; a second one ends at once

\b
Exit status:
  0   ended, and all was finished
  1   could not start or go on, or was ended before all was finished: what was not is back in its queue
  2   the command line is wrong
"""

_defaults = {each.name: each.default for each in fields(Settings)}


def _time_option(name: str, help: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option for a setting that is a time."""
    default = _defaults[name.removeprefix("--").replace("-", "_")]
    return click.option(
        name, type=_Seconds(), default=default, show_default=f"{default:g}s", metavar="TIME", help=help
    )


@click.command(
    epilog=EPILOG,
    short_help="Have a function do what items ask for.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True},
)
@click.argument("function", metavar="MODULE:FUNCTION")
@click.option(
    "-q",
    "--queue",
    "queues",
    multiple=True,
    required=True,
    metavar="NAME",
    help="Queue to take items from. May be given several times: an earlier one goes first while it has any.",
)
@server_option
@click.option(
    "--pool",
    type=click.Choice(POOLS),
    default=_defaults["pool"],
    help="What runs the function: threads; processes; or asyncio, for an async function.",
)
@click.option(
    "-c",
    "--concurrency",
    type=click.IntRange(1),
    default=_defaults["concurrency"],
    metavar="N",
    help="How many items are worked on at a time.",
)
@click.option("--codec", type=click.Choice(["json", "pickle"]), help="What makes values of bytes.")
@_time_option("--grace", "How long the end waits for what is in progress; the rest goes back.")
@_time_option("--first-pause", "Pause before an item that failed comes again; it doubles each time.")
@_time_option("--longest-pause", "The longest such pause.")
@click.option(
    "--max-jobs",
    type=click.IntRange(1),
    metavar="N",
    help="A process ends after so many items. With the pool processes another takes its place.",
)
@click.option(
    "--metrics-port", type=click.IntRange(0, 65535), metavar="PORT", help="Port for Prometheus; 0 is any."
)
@click.option(
    "--metrics-host", default=_defaults["metrics_host"], metavar="ADDRESS", help="Address of that port."
)
@click.option(
    "--log-format",
    type=click.Choice(["auto", "logfmt", "console", "json"]),
    default="auto",
    help="Columns for people (console), key=value (logfmt) or JSON (json) for programs; auto: console at a"
    " terminal, else logfmt.",
)
@click.option("--debug", is_flag=True, help="Log each item that is done.")
def work(function: str, *, log_format: str, debug: bool, **settings: Any) -> None:
    """Take items off queues, and call a function for each.

    MODULE is looked for in the current directory, too. At least once: an item whose worker dies, or does not
    finish in time, goes to another one.
    """
    set_up = functools.partial(_set_up, log_format, debug=debug)
    set_up()
    # as for `python -m`
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.insert(0, "")
    try:
        all_finished = Worker(function=function, set_up=set_up, **settings).run()
    except DarnerError as error:
        click.echo(f"darner work: {printable(str(error))}", err=True)
        sys.exit(1)
    sys.exit(0 if all_finished else 1)


def _set_up(log_format: str, *, debug: bool) -> None:
    """Set up the log of a process."""
    set_up_log()
    choose_log_format(log_format)
    if debug:
        logging.getLogger().setLevel(logging.DEBUG)
