"""The table of all queues: its columns, and its rows sorted and filtered."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from darner.printable import printable
from darner.tools.overview import Overview, QueueView
from darner.web import figures, sparkline
from darner.web.history import POINTS, Histories, History
from darner.web.links import link, queue_id

# So many points of a history make one of a sparkline in the table: of a wide one, of a narrow one.
WIDE = 3
NARROW = 5
# A longer table is of no use to a person, and slow in a browser.
MAX_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its name in the address of the page, its title, and how it shows a queue."""

    name: str
    title: str
    key: Callable[[QueueView], Any]
    text: Callable[[Any], str] = str
    style: str = ""
    # series of the history, for the sparklines beside the figure
    lines: tuple[str, ...] = ()
    classes: tuple[str, ...] = ("",)
    group: int = NARROW
    # whether the largest come first
    goes_down: bool = True


COLUMNS = (
    Column("name", "queue", lambda view: view.name.lower(), goes_down=False),
    Column("items", "items", lambda view: view.stats.items, figures.count, "wide", ("items",), group=WIDE),
    Column("in", "in/s", lambda view: view.rate_in or 0, figures.rate),
    Column(
        "out", "out/s", lambda view: view.rate_out or 0, figures.rate, "wide",
        ("rate_in", "rate_out"), ("i", "o"), WIDE,
    ),
    Column("age", "head waits", lambda view: view.stats.head_age, figures.age, "narrow", ("head_age",)),
    Column("waiters", "waiters", lambda view: view.stats.waiters, figures.count, "narrow", ("waiters",)),
    Column("reserved", "reserved", lambda view: view.reserved, figures.count, "narrow", ("reserved",)),
    Column("delayed", "delayed", lambda view: view.stats.delayed_items, figures.count, "last"),
    Column("lag", "cursor lag", lambda view: view.lag, figures.count, "last"),
    Column("bytes", "bytes", lambda view: view.stats.bytes, figures.size),
)  # fmt: skip
_BY_NAME = {column.name: column for column in COLUMNS}


class Cell(NamedTuple):
    """A cell of a row: its text, and the paths of its sparklines."""

    label: str
    style: str
    text: str
    paths: Sequence[str]
    classes: Sequence[str]
    # of the sparklines, in points
    width: int


class Row(NamedTuple):
    """A row of the table."""

    key: str
    href: str
    name: str
    server: str
    cells: Sequence[Cell]


class Listing(NamedTuple):
    """The rows that are shown, and how many are not."""

    rows: Sequence[Row]
    more: int


def column_named(name: str) -> Column:
    """Return the column to sort by; that of the items if there is none of this name."""
    return _BY_NAME.get(name) or _BY_NAME["items"]


def listing(
    overviews: Iterable[Overview], histories: Histories, now: float, *, part: str, by: Column, goes_down: bool
) -> Listing:
    """Return the queues that have `part` in their names, in either case, sorted by a column, then by name."""
    part = part.lower()
    found = [
        (overview.server, view)
        for overview in overviews
        for view in overview.queues.values()
        if part in view.name.lower()
    ]
    found.sort(key=lambda each: (each[1].name, each[0]))
    found.sort(key=lambda each: by.key(each[1]), reverse=goes_down)
    servers = {server for server, _ in found}
    rows = [
        _row(server, view, histories, now, names_server=len(servers) > 1) for server, view in found[:MAX_ROWS]
    ]
    return Listing(rows, max(len(found) - MAX_ROWS, 0))


def _row(server: str, view: QueueView, histories: Histories, now: float, *, names_server: bool) -> Row:
    history = histories.find(server, view.name)
    id = queue_id(view.name)
    return Row(
        f"{server} {id}",
        link("/queue", server=server, queue=id),
        printable(view.name),
        server if names_server else "",
        [_cell(column, view, history, now) for column in COLUMNS[1:]],
    )


def _cell(column: Column, view: QueueView, history: History | None, now: float) -> Cell:
    series = [history.series(name, now, column.group) for name in column.lines] if history else []
    # where nothing happened there is no line: most of the queues of a long table are quiet
    paths = sparkline.paths(*series) if any(max(each) > 0 for each in series) else ()
    figure = column.key(view)
    style = column.style if figure else f"{column.style} zero".lstrip()
    return Cell(column.title, style, column.text(figure), paths, column.classes, POINTS // column.group)
