"""Options of the benches' command lines, and the bounds of their numbers.

Each bench is bounded in requests and in time, so that none goes on for ever.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

CONNECTIONS = click.IntRange(1, 20_000)
REQUESTS = click.IntRange(1, 100_000_000)
SECONDS = click.FloatRange(0.1, 3600)
PIPELINE = click.IntRange(1, 10_000)
DATA_SIZE = click.IntRange(1, 1 << 30)
SMALL_DATA_SIZE = click.IntRange(1, 65536)
QUEUES = click.IntRange(1, 100_000)
# How far a bench may grow a queue.
BACKLOG_ITEMS = click.IntRange(0, 100_000_000)
PORT = click.IntRange(1, 65535)

_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


def option(
    names: str, default: object, type: Any, help: str | None = None, metavar: str | None = None
) -> Callable[[Command], Command]:
    """Return an option that shows its default; `names` are those of `click.option`, with spaces between."""
    return click.option(
        *names.split(), default=default, show_default=True, type=type, help=help, metavar=metavar
    )


def together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return several options as one decorator."""

    def add(command: Command) -> Command:
        for one in reversed(options):
            command = one(command)
        return command

    return add


def numbers(within: click.IntRange) -> Callable[[str], list[int]]:
    """Return the type of an option with several numbers, such as `1,10,100`."""

    def numbers(text: str) -> list[int]:
        return [within(word) for word in text.replace(",", " ").split()]

    return numbers


def words(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return the type of an option with several of these words, such as `a,b`."""

    def words(text: str) -> list[str]:
        return [click.Choice(known)(word) for word in text.split(",")]

    return words


def connections(default: int | str) -> Callable[[Command], Command]:
    """Return the option for the number of connections; several numbers where the default is a text."""
    return option("-c --connections", default, _one_or_several(default, CONNECTIONS))


def pipeline(default: int) -> Callable[[Command], Command]:
    """Return the option for the number of requests in one write."""
    return option("--pipeline", default, PIPELINE)


def requests(default: int, help: str = "Per measurement.") -> Callable[[Command], Command]:
    """Return the option for the number of requests."""
    return option("-n --requests", default, REQUESTS, help)


def data_size(default: int, within: click.IntRange = DATA_SIZE) -> Callable[[Command], Command]:
    """Return the option for the bytes of an item."""
    return option("-d --data-size", default, within)


def large_mib() -> Callable[[Command], Command]:
    """Return the option for the size of a large item."""
    return option("--large", 8, click.IntRange(1, 256), "MiB of a large item.")


def seed(of: str) -> Callable[[Command], Command]:
    """Return the option for the seed of what is drawn by chance."""
    return click.option("--seed", default=None, type=int, help=f"{of}  [default: random]")


json_file: Callable[[Any], Any] = click.option(
    "--json", "json_file", type=_FILE, help="File for all figures."
)
files: Callable[[Any], Any] = together(
    json_file,
    click.option("--plot", "plot_file", type=_FILE, help="PNG file."),
)
data_in: Callable[[Any], Any] = click.option(
    "--data-in",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory for the server's data.  [default: that of temporary files]",
)


def _one_or_several(default: int | str, within: click.IntRange) -> Any:
    return numbers(within) if isinstance(default, str) else within
