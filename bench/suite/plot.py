#!/usr/bin/env python3
"""Draw the JSON file of a bench as a PNG."""

import json
from pathlib import Path
from typing import Any

import click
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PANEL_INCHES = (6.0, 3.6)
BARS_WIDTH = 0.8


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw the report of a bench into a PNG file."""
    figure = _samples(report) if "samples" in report else _medians(report)
    figure.savefig(path, dpi=120, format="png")


def _samples(report: dict[str, Any]) -> Figure:
    """Draw samples over time, with a panel for each series."""
    series = report["series"]
    figure = Figure((2 * PANEL_INCHES[0], PANEL_INCHES[1] * len(series) / 2), layout="constrained")
    panels = figure.subplots(len(series), 1, sharex=True, squeeze=False)
    minutes = [one["seconds"] / 60 for one in report["samples"]]
    for (panel,), (key, title) in zip(panels, series.items(), strict=True):
        panel.plot(minutes, [one[key] for one in report["samples"]], linewidth=1)
        panel.set_ylabel(title)
        panel.set_ylim(bottom=0)
        panel.grid(axis="y", alpha=0.3)
    panels[-1][0].set_xlabel("minutes")
    figure.suptitle(f"{report['bench']}: {report['about']}", fontsize="medium")
    return figure


def _medians(report: dict[str, Any]) -> Figure:
    """Draw medians, with a row of panels for each figure and a column for each value of the split."""
    spec = report["plot"]
    drawn = [key for key in spec["drawn"] if any(key in one["figures"] for one in report["medians"])]
    splits = list(dict.fromkeys(one["cell"].get(spec["split"]) for one in report["medians"]))
    if not drawn:
        raise click.ClickException("nothing was measured: there is nothing to draw")
    figure = Figure((PANEL_INCHES[0] * len(splits), PANEL_INCHES[1] * len(drawn)), layout="constrained")
    panels = figure.subplots(len(drawn), len(splits), squeeze=False)
    titles = {column["key"]: column["title"] for column in report["columns"]}
    for row, key in enumerate(drawn):
        for place, split in enumerate(splits):
            panel = panels[row][place]
            own = [one for one in report["medians"] if one["cell"].get(spec["split"]) == split]
            _draw_panel(panel, own, spec["x"], key)
            panel.set_ylabel(titles.get(key, key))
            panel.set_xlabel(spec["x"])
            if split is not None:
                panel.set_title(f"{spec['split']} {split}")
            panel.legend(fontsize="small")
    title = f"{report['bench']}: {report['about']}\nmedians and range of {report['rounds']} rounds"
    figure.suptitle(title, fontsize="medium")
    return figure


def _draw_panel(panel: Axes, medians: list[dict[str, Any]], x: str, key: str) -> None:
    places = list(dict.fromkeys(one["cell"][x] for one in medians))
    servers = list(dict.fromkeys(one["server"] for one in medians))
    for number, server in enumerate(servers):
        own = [one for one in medians if one["server"] == server and key in one["figures"]]
        middle = [one["figures"][key] for one in own]
        low = [one["figures"][key] - one["low"][key] for one in own]
        high = [one["high"][key] - one["figures"][key] for one in own]
        at = [places.index(one["cell"][x]) for one in own]
        if all(isinstance(place, int) for place in places):
            panel.errorbar(at, middle, yerr=[low, high], marker="o", capsize=3, label=server)
        else:
            width = BARS_WIDTH / len(servers)
            beside = [place + (number - (len(servers) - 1) / 2) * width for place in at]
            panel.bar(beside, middle, width, yerr=[low, high], capsize=3, label=server)
    # Evenly spaced, as the values grow by factors from 0 or 1 to thousands, or are names.
    labels = [f"{place:,}" if isinstance(place, int) else place for place in places]
    panel.set_xticks(range(len(places)), labels, rotation=20)
    panel.set_xlim(-0.5, len(places) - 0.5)
    panel.set_ylim(bottom=0)
    panel.grid(axis="y", alpha=0.3)


@click.command(help=__doc__)
@click.argument("report", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("png", required=False, type=click.Path(dir_okay=False, path_type=Path))
def main(report: Path, png: Path | None) -> None:
    """Draw into this PNG file, by default beside the JSON file."""
    draw(json.loads(report.read_text()), png or report.with_suffix(".png"))


if __name__ == "__main__":
    main()
