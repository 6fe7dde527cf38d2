#!/usr/bin/env python3
"""Print medians of a bench's JSON file as a table in Markdown, for docs/benchmarks.md."""

import json
from pathlib import Path
from typing import Any

import click


def table(report: dict[str, Any], keys: list[str], where: dict[str, str]) -> list[str]:
    """Return the lines of a table of these columns, of the cells with these values that have a figure."""
    known = {column["key"]: column for column in report["columns"]}
    if missing := [key for key in keys if key not in known]:
        raise click.UsageError(f"{', '.join(missing)}: the columns are {', '.join(known)}")
    parts = [part for part in report["medians"][0]["cell"] if part not in where]
    heads = [*parts, "server"]
    if report.get("remark"):
        heads.append(report["remark"])
    for key in keys:
        heads.append(known[key]["title"])
        if known[key]["compared"]:
            heads += ["low … high", "ratio"]
    lines = [heads, ["---"] * len(heads)]
    for one in report["medians"]:
        if any(str(one["cell"][part]) != value for part, value in where.items()):
            continue
        if not any(key in one["figures"] for key in keys):
            continue
        words = [f"{value:,}" if isinstance(value, int) else value for value in map(one["cell"].get, parts)]
        words.append(one["server"])
        if report.get("remark"):
            words.append(one["remark"])
        for key in keys:
            words += _words(known[key], one)
        lines.append(words)
    return [f"| {' | '.join(words)} |" for words in lines]


def _words(column: dict[str, Any], one: dict[str, Any]) -> list[str]:
    key, digits = column["key"], column["digits"]
    if key not in one["figures"]:
        return ["-"] * (3 if column["compared"] else 1)
    words = [f"{one['figures'][key]:,.{digits}f}"]
    if column["compared"]:
        ratio = one["ratios"].get(key)
        words.append(f"{one['low'][key]:,.{digits}f} … {one['high'][key]:,.{digits}f}")
        words.append("-" if ratio is None else f"{ratio:.2f}")
    return words


@click.command(help=__doc__)
@click.argument("report", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--columns", required=True, help="Keys of the report's columns, such as rps,p99_us.")
@click.option("--where", multiple=True, metavar="PART=VALUE", help="Only cells with it, such as work=put.")
def main(report: Path, columns: str, where: tuple[str, ...]) -> None:
    """Print the table."""
    parts = dict(word.split("=", 1) for word in where)
    for line in table(json.loads(report.read_text()), columns.split(","), parts):
        click.echo(line)


if __name__ == "__main__":
    main()
