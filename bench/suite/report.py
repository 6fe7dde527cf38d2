"""The report of a bench: its cells and columns, medians over rounds, the table and the JSON file.

A cell is what a bench varies, such as `connections=100`. Nothing here measures.
"""

import json
import os
import platform
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from load import raw
from load.servers import SHARED_CORES, Server, ServerError
from suite import plot

Cell = dict[str, int | str]
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
    """One figure in the table. Of a `compared` one the range and the ratio to the base are shown, too."""

    key: str
    title: str
    digits: int = 0
    compared: bool = False


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
class Measured:
    """The figures of one measurement. An unknown figure is left out."""

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


@dataclass(frozen=True)
class Median:
    """One cell on one server, over all rounds."""

    cell: Cell
    server: str
    figures: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]
    ratios: dict[str, float]
    rounds: int
    client_limited_rounds: int
    errors: list[str]
    remark: str

    @property
    def client_limited(self) -> bool:
        """Return whether the client was the limit in most rounds."""
        return self.client_limited_rounds * 2 > self.rounds


@dataclass(kw_only=True)
class Report:
    """What a bench varies, and how its figures are shown."""

    name: str
    about: str
    cells: list[Cell]
    columns: list[Column]
    # What is drawn: figures, each with the words above its panel; the part of a cell that is the x axis, and
    # words for that; the part that has a panel for each value, and what stands for {} in the words above it.
    drawn: dict[str, str]
    x: str
    x_words: str = ""
    split: str | None = None
    split_words: dict[str, str] = field(default_factory=dict)
    # Of parts of a cell, the values that are drawn; all where it says nothing.
    only: dict[str, list[int | str]] = field(default_factory=dict)
    # A column of words on a cell of a server: its title, and what it says.
    remark: tuple[str, Callable[[Cell, str], str]] | None = None
    conclude: Callable[[list[Median]], list[str]] = lambda _: []
    store_note: str = ""


class Results:
    """All measurements of some servers, since when they were taken, and what the servers are."""

    def __init__(self) -> None:
        self.started = now()
        self.rows: list[dict[str, Any]] = []
        self._servers: tuple[Server, ...] = ()
        self._described: list[dict[str, Any]] = []

    def describe(self, *servers: Server) -> None:
        """Ask the servers for their versions, while they still answer."""
        self._servers = servers
        self._described = [
            asdict(server) | {"version": server.version(), "queue": server.is_queue()} for server in servers
        ]

    def add(self, number: int, cell: Cell, server: Server, measured: Measured) -> None:
        """Add the measurement of a cell on a server in this round."""
        self.rows.append({"round": number, "cell": cell, "server": server.name} | asdict(measured))

    def publish(
        self, report: Report, base: str, rounds: int, json_file: Path | None, plot_file: Path | None
    ) -> None:
        """Print the table, write the JSON and draw the plot."""
        medians = _medians(report, [server.name for server in self._servers], base, self.rows)
        notes = report.conclude(medians) + self._notes(report, medians)
        console = Console(width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL, highlight=False)
        console.print(_table(report, base, medians, rounds))
        for note in notes:
            console.print(f"- {note}", markup=False)
        found = {
            "bench": report.name,
            "about": report.about,
            **circumstances(self.started),
            "base": base,
            "rounds": rounds,
            "servers": self._described,
            "columns": [asdict(column) for column in report.columns],
            "plot": {
                "x": report.x,
                "x_words": report.x_words,
                "split": report.split,
                "split_words": report.split_words,
                "drawn": report.drawn,
                "only": report.only,
            },
            "remark": report.remark and report.remark[0],
            "medians": [asdict(one) for one in medians],
            "notes": notes,
            "rows": self.rows,
        }
        write(found, json_file, plot_file)

    def _notes(self, report: Report, medians: list[Median]) -> list[str]:
        notes = []
        if any(one.client_limited for one in medians):
            notes.append(f"* {raw.CLIENT_LIMITED}: the server may be faster than this")
        for server, described in zip(self._servers, self._described, strict=True):
            if not described["queue"]:
                notes.append(
                    f"{server.name} is a key-value store: its get removes nothing{report.store_note}"
                )
            if server.pid is None:
                notes.append(f"{server.name} was given without a pid: its CPU and memory are not known")
                continue
            try:
                if server.shares_cores():
                    notes.append(f"{server.name}: {SHARED_CORES}")
            except ServerError as error:
                notes.append(error.message)
        return notes + [
            f"{one.server}, {label(one.cell)}: {error}" for one in medians for error in one.errors
        ]


def base_of(servers: tuple[Server, ...], base: str | None) -> str:
    """Return the name of the server that the others are compared to; UsageError if it is none of them."""
    names = [server.name for server in servers]
    if len(set(names)) < len(names):
        raise click.UsageError("two servers have the same name")
    base = base or names[0]
    if base not in names:
        raise click.UsageError(f"--base {base} is none of the servers")
    return base


def now() -> str:
    """Return the time, for the JSON file."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def circumstances(started: str) -> dict[str, Any]:
    """Return when, by which command and on which machine a bench ran, for the JSON file."""
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


def write(found: dict[str, Any], json_file: Path | None, plot_file: Path | None) -> None:
    """Write the JSON file and draw the plot, each if it was asked for."""
    if json_file:
        json_file.write_text(json.dumps(found, indent=1) + "\n")
    if plot_file:
        plot.draw(found, plot_file)


def label(cell: Cell) -> str:
    """Return a cell as text, such as `connections=1,000`."""
    return " ".join(f"{key}={_word(value)}" for key, value in cell.items())


def _word(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else value


def _medians(report: Report, names: list[str], base: str, rows: list[dict[str, Any]]) -> list[Median]:
    medians = []
    for cell in report.cells:
        of_cell = [row for row in rows if row["cell"] == cell]
        in_base = {row["round"]: row["figures"] for row in of_cell if row["server"] == base}
        for name in names:
            own = [row for row in of_cell if row["server"] == name]
            keys = dict.fromkeys(key for row in own for key in row["figures"])
            values = {key: [row["figures"][key] for row in own if key in row["figures"]] for key in keys}
            ratios = {}
            for column in report.columns:
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
                    remark=report.remark[1](cell, name) if report.remark else "",
                )
            )
    return medians


def _table(report: Report, base: str, medians: list[Median], rounds: int) -> Table:
    title = f"{report.name}: {report.about}\nmedians of {rounds} rounds; ratios to {base}"
    table = Table(title=title, title_justify="left")
    for key in report.cells[0]:
        table.add_column(key, justify="right")
    table.add_column("server")
    if report.remark:
        table.add_column(report.remark[0])
    for column in report.columns:
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
        if report.remark:
            words.append(one.remark)
        for column in report.columns:
            words += _words(column, one)
        table.add_row(*words)
    return table


def _words(column: Column, one: Median) -> list[str]:
    if column.key not in one.figures:
        return ["-"] * (3 if column.compared else 1)
    mark = "*" if column.compared and one.client_limited else ""
    words = [f"{one.figures[column.key]:,.{column.digits}f}{mark}"]
    if column.compared:
        words.append(f"{one.low[column.key]:,.{column.digits}f} … {one.high[column.key]:,.{column.digits}f}")
        words.append(f"{one.ratios[column.key]:.2f}" if column.key in one.ratios else "-")
    return words
