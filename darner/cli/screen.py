"""What `top` shows, and what a key does: no terminal is read or written here."""

import time
from collections.abc import Sequence
from dataclasses import fields

from rich.text import Text

from darner.cli.tables import summary, trouble_lines
from darner.printable import printable
from darner.tools import listing
from darner.tools.listing import COLUMNS, SORTS, Row, label, rate, size
from darner.tools.overview import Overview, duration

# A name of the table has so many characters at least: on a narrow terminal columns are left out.
_SHORTEST_NAME = 20
_MOST_TROUBLES = 5
KEYS = "q quit  arrows: queue, sort  r reverse  Enter one queue  Esc back"


class Screen:
    """The state of what is shown."""

    def __init__(self, pattern: str, sort: str) -> None:
        self._pattern = pattern
        self._sort = sort
        self._is_reversed = False
        # the queue that is chosen, by server and name; how many rows are above the first that is shown
        self._chosen: tuple[str, str] | None = None
        self._above = 0
        self._shows_one = False
        # of the last drawing
        self._rows: list[Row] = []
        self._page = 1

    def press(self, key: str) -> bool:
        """Do what a key asks for; return whether to go on."""
        steps = {"up": -1, "k": -1, "down": 1, "j": 1, "pageup": -self._page, "pagedown": self._page}
        steps |= {
            "home": -len(self._rows),
            "g": -len(self._rows),
            "end": len(self._rows),
            "G": len(self._rows),
        }
        turns = {"left": -1, "<": -1, "right": 1, ">": 1}
        if key in ("q", "Q"):
            return False
        if key in steps:
            self._move(steps[key])
        elif key in turns:
            self._sort = SORTS[(SORTS.index(self._sort) + turns[key]) % len(SORTS)]
            self._is_reversed = False
        elif key == "r":
            self._is_reversed = not self._is_reversed
        elif key == "enter":
            self._shows_one = bool(self._rows)
        elif key in ("escape", "backspace"):
            self._shows_one = False
        return True

    def _move(self, by: int) -> None:
        if self._rows:
            row = self._rows[min(max(self._at() + by, 0), len(self._rows) - 1)]
            self._chosen = row.server, row.view.name

    def _at(self) -> int:
        """Return which of the rows is chosen: the first if that one is gone."""
        names = [(row.server, row.view.name) for row in self._rows]
        return names.index(self._chosen) if self._chosen in names else 0

    def draw(self, overviews: Sequence[Overview], width: int, height: int) -> Text:
        """Return what to show on so many columns and lines."""
        self._rows = listing.sort(
            listing.rows(overviews, self._pattern), self._sort, is_reversed=self._is_reversed
        )
        order = "reversed" if self._is_reversed else ""
        lines = [Text(f"darner top  {time.strftime('%H:%M:%S')}  sorted by {self._sort} {order}", "bold")]
        lines += [Text(summary(overview), "red" if overview.error else "") for overview in overviews]
        troubles = sorted(trouble for overview in overviews for trouble in overview.troubles())
        most = min(_MOST_TROUBLES, max(height // 3 - len(overviews), 1))
        wrong = trouble_lines(troubles, most, with_server=len(overviews) > 1)
        lines += [Text(line, "red") for line in wrong]
        room = max(height - len(lines) - 1, 2)
        if self._shows_one and self._rows:
            lines += self._one(self._rows[self._at()], width)[:room]
        else:
            lines += self._table(width, room, with_server=len(overviews) > 1)
        lines += [Text()] * (height - 1 - len(lines))
        lines = [*lines[: height - 1], Text(KEYS, "dim")]
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        return Text("\n", end="").join(lines)

    def _table(self, width: int, height: int, *, with_server: bool) -> list[Text]:
        names = [name for name in COLUMNS if name != self._sort]
        server_width = max((len(row.server) + 1 for row in self._rows), default=0) if with_server else 0
        needed = _SHORTEST_NAME + server_width
        shown = set(COLUMNS)
        for name in reversed(names):
            if needed + sum(COLUMNS[each].width + 1 for each in shown) > width:
                shown.discard(name)
        columns = {name: column for name, column in COLUMNS.items() if name in shown}
        name_width = max(width - server_width - sum(column.width + 1 for column in columns.values()), 1)
        at = self._at()
        self._page = max(height - 1, 1)
        self._above = min(max(self._above, at - self._page + 1), at, max(len(self._rows) - self._page, 0))
        head = Text(style="reverse")
        head.append(f"{'QUEUE':<{name_width}}", "bold" if self._sort == "name" else "")
        head.append(f"{' SERVER':<{server_width}}" if with_server else "")
        for name, column in columns.items():
            head.append(f" {column.title:>{column.width}}", "bold" if self._sort == name else "")
        lines = [head]
        for number, row in enumerate(self._rows[self._above :][: self._page], self._above):
            line = Text(f"{_shortened(row.name, name_width):<{name_width}}")
            line.append(f" {row.server:<{server_width - 1}}" if with_server else "")
            if row.view.stats.out_of_service:
                line.append(" out of service", "red")
            else:
                line.append("".join(f" {column.text(row):>{column.width}}" for column in columns.values()))
            if number == at:
                line.stylize("bold cyan")
            lines.append(line)
        return lines

    def _one(self, row: Row, width: int) -> list[Text]:
        """Return all that is known of one queue."""
        stats = row.view.stats
        lines = [Text(f"{row.name}  on {row.server}", "bold")]
        if stats.out_of_service:
            return [*lines, Text(f"out of service: {printable(stats.out_of_service)}", "red")]
        figures = {"rate_in": f"{rate(row.view.rate_in)}/s", "rate_out": f"{rate(row.view.rate_out)}/s"}
        for each in fields(stats):
            figure = getattr(stats, each.name)
            if each.name in ("age", "head_age"):
                figures[each.name] = duration(figure)
            elif each.name == "create_time":
                figures[each.name] = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(figure))
            elif each.name in ("max_items", "max_bytes"):
                figures[each.name] = str(figure or "no limit")
            elif each.name.endswith("bytes") or each.name == "logsize":
                figures[each.name] = f"{figure} ({size(figure)})"
            elif isinstance(figure, int):
                figures[each.name] = str(figure)
        figures |= {f"/cursor={label(name)}": f"{lag} to read" for name, lag in stats.cursor_lags.items()}
        cells = [f"{name:<22}{figure}" for name, figure in figures.items()]
        if width < 80:
            return [*lines, *map(Text, cells)]
        half = -(-len(cells) // 2)
        pairs = zip(cells[:half], [*cells[half:], ""], strict=False)
        return [*lines, *(Text(f"{left:<{width // 2}}{right}") for left, right in pairs)]


def _shortened(name: str, width: int) -> str:
    """Return a name in so many characters: what is too much is left out in its middle."""
    if len(name) <= width:
        return name
    head = (width - 1) // 2
    return f"{name[:head]}…{name[len(name) - (width - 1 - head) :]}"
