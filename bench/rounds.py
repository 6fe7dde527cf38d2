"""Measuring servers side by side: cells, rounds, the table, the JSON file.

A bench is a list of cells (what is varied, such as `connections=100`) and a function that measures one cell
on one server. Within a round the servers take turns at each cell, and who goes first rotates, so that what
else the machine does falls on all of them. Nothing is drawn on the terminal while something is measured.
"""

import contextlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import click
import plot
import raw
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from servers import SHARED_CORES, Server, ServerError, named_server

Cell = dict[str, int | str]
Decorated = TypeVar("Decorated", bound=Callable[..., Any])
# The warm-up's connections; Kestrel is not itself before the JVM has compiled it.
WARM_CONNECTIONS = 10
WARM_REQUESTS = click.IntRange(0, 10_000_000)
# How far a bench may grow a queue.
ITEMS = click.IntRange(0, 100_000_000)
FIGURES = (
    "rps",
    "p50_us",
    "p90_us",
    "p99_us",
    "p999_us",
    "max_us",
    "hits",
    "misses",
    "errors",
    "client_busy",
)
WIDTH_WITHOUT_TERMINAL = 260


@dataclass(frozen=True)
class Column:
    """One figure in the table. Of one that is `compared` the spread and the ratio to the base are shown."""

    key: str
    title: str
    digits: int = 0
    compared: bool = False


@dataclass(frozen=True)
class Measured:
    """What one measurement gave. A figure that is not known is not there."""

    figures: dict[str, float]
    client_limited: bool = False
    error: str = ""

    @classmethod
    def of(cls, result: raw.Result) -> "Measured":
        """Return the figures of a raw result."""
        figures = {name: float(getattr(result, name)) for name in FIGURES}
        if result.server_busy >= 0:
            figures |= {"server_busy": result.server_busy, "server_cpu_us": result.server_cpu_us}
        return cls(figures, result.client_limited, result.first_error)


RATE = Column("rps", "requests/s", compared=True)
LATENCIES = [
    Column("p50_us", "p50 us"),
    Column("p90_us", "p90 us"),
    Column("p99_us", "p99 us"),
    Column("p999_us", "p99.9 us"),
    Column("max_us", "max us"),
]
BUSINESS = [
    Column("server_cpu_us", "server CPU us/request", 2),
    Column("server_busy", "server busy", 2),
    Column("client_busy", "client busy", 2),
]


@dataclass(frozen=True)
class Median:
    """One cell on one server over all rounds."""

    cell: Cell
    server: str
    figures: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]
    ratios: dict[str, float]
    rounds: int
    client_limited_rounds: int
    errors: list[str]


@dataclass(kw_only=True)
class Report:
    """What a bench varies, and how that is shown."""

    name: str
    about: str
    cells: list[Cell]
    columns: list[Column]
    # Which part of a cell is the x axis, which one gets a panel of its own, and which figures are drawn.
    x: str
    split: str | None = None
    drawn: list[str] = field(default_factory=lambda: ["rps"])
    conclude: Callable[[list[Median]], list[str]] = lambda _: []
    store_note: str = ""


@dataclass(kw_only=True)
class Bench(Report):
    """How servers that run already are measured, cell by cell."""

    measure: Callable[[Server, Cell], Measured]
    queues: Callable[[], list[str]] = list
    begin: Callable[[Server], None] = lambda _: None


def _adding(*added: Callable[[Decorated], Decorated]) -> Callable[[Decorated], Decorated]:
    def add(command: Decorated) -> Decorated:
        for option in reversed(added):
            command = option(command)
        return command

    return add


_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)
targets: Callable[[Any], Any] = _adding(
    click.argument("servers", nargs=-1, required=True, type=named_server, metavar="NAME=HOST:PORT[:PID]..."),
    click.option("--base", help="The server the others are compared to.  [default: the first]"),
)
files: Callable[[Any], Any] = _adding(
    click.option("--json", "json_file", type=_FILE, help="File for all figures."),
    click.option("--plot", "plot_file", type=_FILE, help="PNG file."),
)


def repeated(rounds: int) -> Callable[[Decorated], Decorated]:
    """Add the number of rounds, with this default."""
    return click.option("--rounds", default=rounds, show_default=True, type=click.IntRange(1, 100))


def options(rounds: int = 5, seconds: float = 20.0) -> Callable[[Decorated], Decorated]:
    """Add what all benches of running servers understand, with these defaults."""
    return _adding(
        targets,
        repeated(rounds),
        click.option(
            "--seconds", default=seconds, show_default=True, type=raw.SECONDS, help="At most, a measurement."
        ),
        click.option(
            "--warmup", default=5000, show_default=True, type=WARM_REQUESTS, help="Requests, per server."
        ),
        files,
    )


def numbers(within: click.IntRange) -> Callable[[str], list[int]]:
    """Return the type of an option with several numbers, as `1,10,100`."""

    def numbers(text: str) -> list[int]:
        return [within(word) for word in text.replace(",", " ").split()]

    return numbers


def queue_name(bench: str) -> str:
    """Return a queue that only this process uses."""
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
    """Measure, print the table, write the JSON and draw the plot."""
    base = base_of(servers, base)
    described = [describe(server) for server in servers]
    started = now()
    rows = _measure(bench, servers, rounds, warmup)
    publish(bench, servers, described, base, rounds, started, rows, json_file, plot_file)


def base_of(servers: tuple[Server, ...], base: str | None) -> str:
    """Return the name of the server that the others are compared to; UsageError if it is none of them."""
    names = [server.name for server in servers]
    if len(set(names)) < len(names):
        raise click.UsageError("two servers have the same name")
    base = base or names[0]
    if base not in names:
        raise click.UsageError(f"--base {base} is none of the servers")
    return base


def row(number: int, cell: Cell, server: Server, measured: Measured) -> dict[str, Any]:
    """Return one measurement as it is written to the JSON file."""
    return {"round": number, "cell": cell, "server": server.name} | asdict(measured)


def now() -> str:
    """Return the time as it is written to the JSON file."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def circumstances(started: str) -> dict[str, Any]:
    """Return when, how and where a bench ran, as it is written to the JSON file."""
    return {
        "started": started,
        "command": shlex.join(sys.argv),
        "machine": {
            "kernel": platform.release(),
            "cpus": os.cpu_count(),
            "client_cpus": sorted(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "load_average_after": os.getloadavg(),
        },
    }


def publish(
    bench: Report,
    servers: tuple[Server, ...],
    described: list[dict[str, Any]],
    base: str,
    rounds: int,
    started: str,
    rows: list[dict[str, Any]],
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Print the table of what was measured, write the JSON and draw the plot."""
    medians = _medians(bench, [server.name for server in servers], base, rows)
    notes = bench.conclude(medians) + _notes(bench, servers, described, medians)
    console = Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL, highlight=False)
    console.print(_table(bench, base, medians, rounds))
    for note in notes:
        console.print(f"- {note}", markup=False)
    report = {
        "bench": bench.name,
        "about": bench.about,
        **circumstances(started),
        "base": base,
        "rounds": rounds,
        "servers": described,
        "columns": [asdict(column) for column in bench.columns],
        "plot": {"x": bench.x, "split": bench.split, "drawn": bench.drawn},
        "medians": [asdict(one) for one in medians],
        "notes": notes,
        "rows": rows,
    }
    if json_file:
        json_file.write_text(json.dumps(report, indent=1) + "\n")
    if plot_file:
        plot.draw(report, plot_file)


def describe(server: Server) -> dict[str, Any]:
    """Return what a server is, as it is written to the JSON file."""
    return asdict(server) | {"version": server.version(), "queue": server.is_queue()}


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[str, int], None]]:
    """Show how far a bench is; gives what says what is done now, and how many steps were done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as shown:
        task = shown.add_task("starting", total=total)
        yield lambda doing, steps: shown.update(task, description=doing, advance=steps, refresh=True)


def _measure(bench: Bench, servers: tuple[Server, ...], rounds: int, warmup: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with progress(rounds * len(bench.cells) * len(servers)) as step:
        try:
            for server in servers:
                step(f"{server.name}: warming up", 0)
                _warm_up(bench, server, warmup)
            for number in range(rounds):
                for server in servers:
                    # A server that is gone fails in each measurement, and that is reported.
                    with contextlib.suppress(ServerError):
                        bench.begin(server)
                for place, cell in enumerate(bench.cells):
                    first = (number + place) % len(servers)
                    for server in servers[first:] + servers[:first]:
                        doing = f"round {number + 1}, {_label(cell)}: {server.name}"
                        step(doing, 0)
                        try:
                            measured = bench.measure(server, cell)
                        except ServerError as error:
                            measured = Measured({}, error=error.message)
                        rows.append(row(number, cell, server, measured))
                        step(doing, 1)
                _delete(bench, servers)
        except KeyboardInterrupt:
            step("interrupted", 0)
            _delete(bench, servers)
            if not rows:
                raise
    return rows


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


def _medians(bench: Report, names: list[str], base: str, rows: list[dict[str, Any]]) -> list[Median]:
    medians = []
    for cell in bench.cells:
        of_cell = [row for row in rows if row["cell"] == cell]
        in_base = {row["round"]: row["figures"] for row in of_cell if row["server"] == base}
        for name in names:
            own = [row for row in of_cell if row["server"] == name]
            keys = dict.fromkeys(key for row in own for key in row["figures"])
            values = {key: [row["figures"][key] for row in own if key in row["figures"]] for key in keys}
            ratios = {}
            for column in bench.columns:
                # Each round against the same round: what the machine did in it, it did to both.
                pairs = [
                    (row["figures"].get(column.key), in_base.get(row["round"], {}).get(column.key))
                    for row in own
                ]
                quotients = [figure / of_base for figure, of_base in pairs if figure is not None and of_base]
                if column.compared and quotients:
                    ratios[column.key] = median(quotients)
            medians.append(
                Median(
                    cell,
                    name,
                    figures={key: median(several) for key, several in values.items()},
                    low={key: min(several) for key, several in values.items()},
                    high={key: max(several) for key, several in values.items()},
                    ratios=ratios,
                    rounds=len(own),
                    client_limited_rounds=sum(row["client_limited"] for row in own),
                    errors=sorted({row["error"] for row in own if row["error"]}),
                )
            )
    return medians


def _label(cell: Cell) -> str:
    return " ".join(f"{key}={_word(value)}" for key, value in cell.items())


def _word(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else value


def _table(bench: Report, base: str, medians: list[Median], rounds: int) -> Table:
    title = f"{bench.name}: {bench.about}\nmedians of {rounds} rounds; ratios to {base}"
    table = Table(title=title, title_justify="left")
    for key in bench.cells[0]:
        table.add_column(key, justify="right")
    table.add_column("server")
    for column in bench.columns:
        table.add_column(column.title, justify="right")
        if column.compared:
            table.add_column("low … high", justify="right")
            table.add_column("ratio", justify="right")
    last = None
    for one in medians:
        if last not in (None, one.cell):
            table.add_section()
        last = one.cell
        words = [_word(value) for value in one.cell.values()]
        words.append(one.server)
        for column in bench.columns:
            words += _words(column, one)
        table.add_row(*words)
    return table


def _words(column: Column, one: Median) -> list[str]:
    if column.key not in one.figures:
        return ["-"] * (3 if column.compared else 1)
    mark = "*" if column.compared and one.client_limited_rounds * 2 > one.rounds else ""
    words = [f"{one.figures[column.key]:,.{column.digits}f}{mark}"]
    if column.compared:
        words.append(f"{one.low[column.key]:,.{column.digits}f} … {one.high[column.key]:,.{column.digits}f}")
        words.append(f"{one.ratios[column.key]:.2f}" if column.key in one.ratios else "-")
    return words


def _notes(
    bench: Report, servers: tuple[Server, ...], described: list[dict[str, Any]], medians: list[Median]
) -> list[str]:
    notes = []
    if any(one.client_limited_rounds * 2 > one.rounds for one in medians):
        notes.append(f"* {raw.CLIENT_LIMITED}: the server may be faster than this")
    for server, words in zip(servers, described, strict=True):
        if not words["queue"]:
            notes.append(f"{server.name} is a key-value store: its get removes nothing{bench.store_note}")
        if server.pid is None:
            notes.append(f"{server.name} was given without a pid: its CPU and memory are not known")
            continue
        try:
            if server.shares_cores():
                notes.append(f"{server.name}: {SHARED_CORES}")
        except ServerError as error:
            notes.append(error.message)
    notes += [f"{one.server}, {_label(one.cell)}: {error}" for one in medians for error in one.errors]
    return notes
