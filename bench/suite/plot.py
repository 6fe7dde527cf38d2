#!/usr/bin/env python3
"""Draw the JSON file of a bench as a PNG, to be read at the width of a README, on a light page or a dark one.

A server has the same colour and marker in every plot, and its name beside its line. The line goes through the
medians, the band is the range over the rounds. Latencies, and what grows by factors, are on logarithmic axes.
"""

import json
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

# A README shows 100 pixels for an inch of this; twice as many are drawn.
WIDTH_INCHES, DOTS = 8.3, 200
PANEL_INCHES, ROW_INCHES, ABOUT_CHARACTERS = 2.5, 0.17, 118
COLUMNS = 2
# Grey that can be read on white and on black, like the colours.
INK, GRID = "#7d858d", "#7d858d55"
# Pairs of a colour and a marker. A server in another mode has those of the first, with an empty marker.
STYLES = {
    "darner": ("#1f8fe0", "o"),
    "original": ("#e07b1f", "s"),
    "memcached": ("#8c8f2a", "^"),
    "kestrel": ("#a765d8", "D"),
    "siberite": ("#2aa198", "v"),
    "beanstalkd": ("#3ea34d", "P"),
    "redis": ("#e0524d", "X"),
    "nats": ("#b0752f", "d"),
    "rabbitmq": ("#d6539b", "h"),
}
MODE = "-sync"
BAND_ALPHA = 0.22
# Names beside lines are at least so far apart.
NAME_POINTS, NAME_GAP = 8.0, 1.25
LONG_NAME = 24
MOST_DECADES = 5
# An axis that grows by less than this is linear.
FACTOR = 20
LATENCY = re.compile(r"(?:p\d+|max)_(us|ms)|first_get_(ms)")


@dataclass(frozen=True)
class Style:
    """How a server is drawn."""

    color: str
    marker: str
    filled: bool

    def marks(self) -> dict[str, Any]:
        """Return the options of its markers."""
        face = self.color if self.filled else "none"
        return {"marker": self.marker, "markersize": 4.5, "markerfacecolor": face, "color": self.color}


def styles(servers: Sequence[str]) -> dict[str, Style]:
    """Return the styles of servers; one with a name of its own gets what no other of these has."""
    kinds = [server.removesuffix(MODE) for server in servers]
    spare = iter([style for name, style in STYLES.items() if name not in kinds] * len(servers))
    own = {kind: STYLES[kind] if kind in STYLES else next(spare) for kind in dict.fromkeys(kinds)}
    return {
        server: Style(*own[kind], filled=not server.endswith(MODE))
        for server, kind in zip(servers, kinds, strict=True)
    }


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw the report of a bench into a PNG file."""
    figure_of(report).savefig(path, dpi=DOTS, format="png", transparent=True)


def figure_of(report: dict[str, Any]) -> Figure:
    """Return the figure of the report of a bench."""
    with mpl.rc_context(
        {
            "font.size": NAME_POINTS,
            "axes.titlesize": 9,
            "axes.titlelocation": "left",
            "figure.titlesize": 9,
            **dict.fromkeys(["text.color", "axes.labelcolor", "xtick.color", "ytick.color"], INK),
            **dict.fromkeys(["axes.edgecolor", "axes.titlecolor"], INK),
            "axes.xmargin": 0.03,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": GRID,
            "grid.linewidth": 0.6,
        }
    ):
        return _samples(report) if "samples" in report else _medians(report)


def _figure(rows: int, columns: int, panel_inches: float, about: str) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many panels, row by row, and what it is about above them."""
    lines = textwrap.wrap(about, ABOUT_CHARACTERS)
    height = rows * panel_inches + 0.2 * len(lines)
    figure = Figure((WIDTH_INCHES, height), layout="constrained")
    figure.suptitle("\n".join(lines), x=0.01, ha="left")
    panels = figure.subplots(rows, columns, squeeze=False)
    return figure, [panel for row in panels for panel in row]


def _samples(report: dict[str, Any]) -> Figure:
    """Draw samples over time, with a panel for each series."""
    series = report["series"]
    about = f"{report['bench']}: {report['about']}"
    figure, panels = _figure(len(series), 1, PANEL_INCHES / 2, about)
    minutes = [one["seconds"] / 60 for one in report["samples"]]
    color = STYLES["darner"][0]
    for panel, (key, title) in zip(panels, series.items(), strict=True):
        panel.plot(minutes, [one[key] for one in report["samples"]], linewidth=1, color=color)
        panel.set_title(title)
        panel.set_ylim(bottom=0)
        panel.yaxis.set_major_formatter(FuncFormatter(_number))
        panel.grid()
    panels[-1].set_xlabel("minutes")
    return figure


def _medians(report: dict[str, Any]) -> Figure:
    """Draw medians, with a panel for each figure and value of the split."""
    spec = report["plot"]
    medians = [
        one
        for one in report["medians"]
        if all(one["cell"][part] in values for part, values in spec["only"].items())
    ]
    drawn = [key for key in spec["drawn"] if any(key in one["figures"] for one in medians)]
    if not drawn:
        raise click.ClickException("nothing was measured: there is nothing to draw")
    splits = list(dict.fromkeys(one["cell"].get(spec["split"]) for one in medians))
    places = [(key, split) for key in drawn for split in splits]
    names = list(dict.fromkeys(one["server"] for one in medians))
    by_server = styles(names)
    x_values = list(dict.fromkeys(one["cell"][spec["x"]] for one in medians))
    is_grown = all(isinstance(value, int) for value in x_values)
    # beside long names there is no room for a second panel
    longest = max(len(str(value)) for value in x_values)
    columns = 1 if longest > LONG_NAME and not is_grown else min(COLUMNS, len(places))
    panel_inches = PANEL_INCHES if is_grown else 0.7 + ROW_INCHES * len(x_values) * (len(names) + 1)
    rounds = f"medians, and the range of {report['rounds']} rounds" if report["rounds"] > 1 else "one round"
    figure, panels = _figure(
        -(-len(places) // columns), columns, panel_inches, f"{report['bench']}: {report['about']}; {rounds}"
    )
    for panel in panels[len(places) :]:
        panel.set_axis_off()
    texts: list[tuple[Axes, list[Annotation]]] = []
    for panel, (key, split) in zip(panels, places, strict=False):
        own = [one for one in medians if one["cell"].get(spec["split"]) == split and key in one["figures"]]
        panel.set_title(spec["drawn"][key].format(spec["split_words"].get(str(split), split)))
        if is_grown:
            texts.append((panel, _lines(panel, own, spec["x"], key, by_server)))
            panel.set_xlabel(spec["x_words"] or spec["x"])
        else:
            everywhere = [one for one in medians if key in one["figures"]]
            _rows(panel, own, spec, key, by_server, is_log=_grows_by_factors(everywhere, key))
    figure.draw_without_rendering()
    for panel, several in texts:
        _spread(panel, several)
    return figure


def _scaled(one: dict[str, Any], key: str) -> tuple[float, float, float]:
    """Return median, low and high, latencies in ms."""
    by = 1e3 if (found := LATENCY.fullmatch(key)) and found[1] == "us" else 1
    return one["figures"][key] / by, one["low"][key] / by, one["high"][key] / by


def _grows_by_factors(medians: list[dict[str, Any]], key: str) -> bool:
    """Return whether a figure belongs on a logarithmic axis."""
    middles = [one["figures"][key] for one in medians]
    return bool(LATENCY.fullmatch(key)) or max(middles) > FACTOR * min(middles)


def _lines(
    panel: Axes, medians: list[dict[str, Any]], x: str, key: str, by_server: dict[str, Style]
) -> list[Annotation]:
    """Draw a line for each server, and return their names, each at the height of its line's end."""
    texts = []
    for server, style in by_server.items():
        if not (own := [one for one in medians if one["server"] == server]):
            continue
        at = [one["cell"][x] for one in own]
        middle, low, high = zip(*(_scaled(one, key) for one in own), strict=True)
        if len(at) > 1:
            panel.fill_between(at, low, high, color=style.color, alpha=BAND_ALPHA, linewidth=0)
        else:
            panel.vlines(at, low, high, color=style.color, alpha=BAND_ALPHA * 1.5, linewidth=8)
        panel.plot(at, middle, linewidth=1.4, linestyle="-" if style.filled else "--", **style.marks())
        texts.append(
            panel.annotate(
                server,
                (at[-1], middle[-1]),
                xytext=(1.02, 0.5),
                textcoords="axes fraction",
                color=style.color,
                va="center",
                annotation_clip=False,
            )
        )
    _grow(panel, sorted({one["cell"][x] for one in medians}))
    _scale(panel, "y", [_scaled(one, key) for one in medians], is_log=_grows_by_factors(medians, key))
    panel.grid()
    return texts


def _grow(panel: Axes, values: list[int]) -> None:
    """Have the x axis show these values, by factors if they grow by much."""
    positive = [value for value in values if value > 0] or [1]
    if max(positive) / min(positive) < FACTOR and len(values) > 1 and values[0]:
        panel.xaxis.set_major_locator(FixedLocator(values[:: -(-len(values) // 10)]))
        panel.xaxis.set_major_formatter(FuncFormatter(_number))
        return
    decades = [10.0**power for power in range(13) if min(positive) <= 10**power <= max(positive)]
    # or their numbers would run into each other
    decades = decades[:: -(-len(decades) // MOST_DECADES)] if decades else decades
    if values[0] == 0:
        # the way from nothing to the least is as long as a factor of ten
        panel.set_xscale("symlog", linthresh=min(positive), linscale=1)
        panel.xaxis.set_minor_locator(NullLocator())
    else:
        panel.set_xscale("log")
        panel.xaxis.set_minor_formatter(NullFormatter())
    ticks = ([0.0] if values[0] == 0 else []) + (
        decades if len(decades) > 1 else [float(v) for v in positive]
    )
    panel.xaxis.set_major_locator(FixedLocator(ticks))
    panel.xaxis.set_major_formatter(FuncFormatter(_number))


def _scale(panel: Axes, axis: str, values: Sequence[tuple[float, ...]], *, is_log: bool) -> None:
    """Have an axis begin at nothing, or go by factors."""
    least = min((min(several) for several in values), default=0.0)
    most = max((max(several) for several in values), default=0.0)
    panel.use_sticky_edges = False
    ticks = getattr(panel, f"{axis}axis")
    if is_log and least > 0:
        getattr(panel, f"set_{axis}scale")("log")
        if most / least < 10:
            # a decade at least, or a small change looks large
            middle = math.sqrt(most * least)
            getattr(panel, f"set_{axis}lim")(middle / math.sqrt(10), middle * math.sqrt(10))
        ticks.set_major_locator(LogLocator(subs=(1, 3) if most / least > FACTOR else (1, 2, 5)))
        ticks.set_minor_formatter(NullFormatter())
    else:
        getattr(panel, f"set_{axis}lim")(0)
    ticks.set_major_formatter(FuncFormatter(_number))


def _rows(
    panel: Axes,
    medians: list[dict[str, Any]],
    spec: dict[str, Any],
    key: str,
    by_server: dict[str, Style],
    *,
    is_log: bool,
) -> None:
    """Draw a row for each server below each group: a mark at the median, and the range as a band."""
    names: list[tuple[float, str, str]] = []
    row = 0
    groups = list(dict.fromkeys(one["cell"][spec["x"]] for one in medians))
    for group in groups:
        names.append((row, f"{spec['x_words']} {group}".strip(), INK))
        for server, style in by_server.items():
            row += 1
            names.append((row, server, style.color))
            for one in medians:
                if one["server"] == server and one["cell"][spec["x"]] == group:
                    middle, low, high = _scaled(one, key)
                    panel.barh(row, high - low, 0.7, left=low, color=style.color, alpha=BAND_ALPHA * 1.5)
                    panel.plot(middle, row, **style.marks())
        row += 1
    panel.set_yticks([at for at, _, _ in names], [name for _, name, _ in names])
    for label, (_, _, color) in zip(panel.get_yticklabels(), names, strict=True):
        label.set_color(color)
        label.set_fontweight("bold" if color == INK else "normal")
    panel.tick_params(axis="y", length=0)
    panel.set_ylim(row - 0.5, -0.7)
    _scale(panel, "x", [_scaled(one, key) for one in medians], is_log=is_log)
    panel.grid(axis="x")


def _spread(panel: Axes, texts: list[Annotation]) -> None:
    """Move names up and down beside their panel until none covers another."""
    height = panel.get_window_extent().height
    gap = NAME_POINTS * NAME_GAP / 72 * panel.figure.dpi / height
    to_axes = panel.transData + panel.transAxes.inverted()
    ends = [to_axes.transform(text.xy)[1] for text in texts]
    order = sorted(range(len(texts)), key=lambda number: ends[number])
    heights = [ends[number] for number in order]
    for _ in range(200):
        for number in range(1, len(heights)):
            if (short := gap - (heights[number] - heights[number - 1])) > 0:
                heights[number] += short / 2
                heights[number - 1] -= short / 2
        if heights:
            heights[0] = max(heights[0], 0.0)
            heights[-1] = min(heights[-1], 1.0)
    for number, at in zip(order, heights, strict=True):
        texts[number].set_position((1.02, at))


def _number(value: float, _: object = None) -> str:
    """Return a number as short as can be read: 0.3, 1,000, 2 M."""
    if value >= 1e6:
        return f"{value / 1e6:g} M"
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.argument("report", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("png", required=False, type=click.Path(dir_okay=False, path_type=Path))
def main(report: Path, png: Path | None) -> None:
    """Draw into this PNG file, by default beside the JSON file."""
    draw(json.loads(report.read_text()), png or report.with_suffix(".png"))


if __name__ == "__main__":
    main()
