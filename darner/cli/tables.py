"""Queues as lines of text: for a terminal of any width, and for a pipe."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

import click

from darner.printable import printable
from darner.tools.listing import COLUMNS, Row, label, size
from darner.tools.overview import Overview, Trouble

# what the columns behind the name take, with a space before each
_FIGURES_WIDTH = sum(column.width + 1 for column in COLUMNS.values())
_SHORTEST_NAME = 12


def is_colored() -> bool:
    """Return whether standard output shows colors: at a terminal, unless NO_COLOR is set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def write(line: str, **style: bool | str) -> None:
    """Write a line that is safe to show, in a style where there are colors."""
    colored = is_colored()
    click.echo(click.style(line, **style) if colored and style else line, color=colored)  # type: ignore[arg-type]


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """Give a head and a line for each row; its cursors are lines of their own, behind it.

    At a terminal, a name that is too long for the line has one of its own, so that it can be copied.
    """
    wanted = max((len(name) for row in rows for name in _names(row)), default=0)
    width = max(wanted, _SHORTEST_NAME)
    if sys.stdout.isatty():
        columns = shutil.get_terminal_size().columns
        width = min(width, max(columns - _FIGURES_WIDTH, _SHORTEST_NAME))
    yield _line("QUEUE", [column.title for column in COLUMNS.values()], width)
    for row in rows:
        if row.view.stats.out_of_service:
            yield f"{row.name:<{width}} out of service: {printable(row.view.stats.out_of_service)}"
            continue
        figures = [column.text(row) for column in COLUMNS.values()]
        yield _line(row.name, figures, width)
        for cursor, lag in row.view.stats.cursor_lags.items():
            figures = ["-"] * (len(COLUMNS) - 1) + [str(lag)]
            yield _line(f"{row.name}/cursor={label(cursor)}", figures, width)


def _names(row: Row) -> Iterator[str]:
    yield row.name
    for cursor in row.view.stats.cursor_lags:
        yield f"{row.name}/cursor={label(cursor)}"


def _line(name: str, figures: Sequence[str], width: int) -> str:
    head = f"{name:<{width}}" if len(name) <= width else f"{name}\n{'':<{width}}"
    widths = [column.width for column in COLUMNS.values()]
    return f"{head} " + " ".join(f"{figure:>{wide}}" for figure, wide in zip(figures, widths, strict=True))


def summary(overview: Overview) -> str:
    """Return a server in a line."""
    stats = overview.stats
    if not stats.pid:
        return f"{overview.server}  does not answer"
    state = "does not answer" if overview.error else printable(stats.status or "up")
    return (
        f"{overview.server}  darner {printable(stats.version)}  {state}  queues={len(overview.queues)}"
        f" items={stats.curr_items} bytes={size(stats.bytes)} clients={stats.curr_connections}"
    )


def trouble_lines(troubles: Sequence[Trouble], most: int, *, with_server: bool) -> Iterator[str]:
    """Give a line for each of the first `most` things that are wrong, and one that counts the others."""
    for trouble in troubles[:most]:
        where = [trouble.server] if with_server or not trouble.queue else []
        where += [label(trouble.queue)] if trouble.queue else []
        text = printable(trouble.text).removeprefix(f"{trouble.server}: ")
        yield f"! {trouble.kind.label}: {' '.join(where)}: {text}"
    if others := Counter(trouble.kind.label for trouble in troubles[most:]):
        yield f"! and more: {', '.join(f'{count} {kind}' for kind, count in others.items())}"
