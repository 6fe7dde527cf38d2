"""Measuring servers side by side, in rounds.

A bench is a list of cells and a function that measures one cell on one server. Within a round the servers
take turns at each cell, and the first one rotates, so that other work of the machine falls on all of them.
Nothing is drawn on the terminal during a measurement.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from load import raw
from load.options import SECONDS, Command, files, option, together
from load.servers import Server, ServerError, named_server
from suite.report import Cell, Measured, Report, Results, base_of, label

# The warm-up's connections; Kestrel reaches its speed only when the JVM has compiled it.
WARM_CONNECTIONS = 10
WARM_REQUESTS = click.IntRange(0, 10_000_000)


@dataclass(kw_only=True)
class Bench(Report):
    """How running servers are measured, cell by cell."""

    measure: Callable[[Server, Cell], Measured]
    queues: Callable[[], list[str]] = list
    begin: Callable[[Server], None] = lambda _: None


targets: Callable[[Any], Any] = together(
    click.argument("servers", nargs=-1, required=True, type=named_server, metavar="NAME=HOST:PORT[:PID]..."),
    click.option("--base", help="The server the others are compared to.  [default: the first]"),
)


def repeated(rounds: int) -> Callable[[Command], Command]:
    """Return the option for the number of rounds."""
    return option("--rounds", rounds, click.IntRange(1, 100))


def options(rounds: int = 5, seconds: float = 20.0) -> Callable[[Command], Command]:
    """Return the options of all benches of running servers."""
    return together(
        targets,
        repeated(rounds),
        option("--seconds", seconds, SECONDS, "At most, a measurement."),
        option("--warmup", 5000, WARM_REQUESTS, "Requests, per server."),
        files,
    )


def queue_name(bench: str) -> str:
    """Return the name of a queue that only this process uses."""
    return f"bench-{bench}-{os.getpid()}"


def run(
    bench: Bench,
    servers: tuple[Server, ...],
    base: str | None,
    rounds: int,
    warmup: int,
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Measure all rounds and publish the results."""
    base = base_of(servers, base)
    results = Results()
    results.describe(*servers)
    _measure(bench, servers, rounds, warmup, results)
    results.publish(bench, base, rounds, json_file, plot_file)


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[str, int], None]]:
    """Show how far a bench is; yields a function that takes the current work and the steps just done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as shown:
        task = shown.add_task("starting", total=total)
        yield lambda doing, steps: shown.update(task, description=doing, advance=steps, refresh=True)


def _measure(bench: Bench, servers: tuple[Server, ...], rounds: int, warmup: int, results: Results) -> None:
    with progress(rounds * len(bench.cells) * len(servers)) as step:
        try:
            for server in servers:
                step(f"{server.name}: warming up", 0)
                _warm_up(bench, server, warmup)
            for number in range(rounds):
                for server in servers:
                    # A server that has ended fails in each measurement, and the report says so.
                    with contextlib.suppress(ServerError):
                        bench.begin(server)
                for place, cell in enumerate(bench.cells):
                    first = (number + place) % len(servers)
                    for server in servers[first:] + servers[:first]:
                        doing = f"round {number + 1}, {label(cell)}: {server.name}"
                        step(doing, 0)
                        try:
                            measured = bench.measure(server, cell)
                        except ServerError as error:
                            measured = Measured({}, error=error.message)
                        results.add(number, cell, server, measured)
                        step(doing, 1)
                _delete(bench, servers)
        except KeyboardInterrupt:
            step("interrupted", 0)
            _delete(bench, servers)
            if not results.rows:
                raise


def _warm_up(bench: Bench, server: Server, requests: int) -> None:
    if requests:
        queue = queue_name(bench.name) + "-warm"
        raw.run(server, raw.Load(WARM_CONNECTIONS, requests, queue=queue))
        server.delete(queue)


def _delete(bench: Bench, servers: tuple[Server, ...]) -> None:
    for server in servers:
        try:
            server.delete(*bench.queues())
        except ServerError as error:
            click.echo(f"{bench.queues()[0]} was not deleted: {error.message}", err=True)
