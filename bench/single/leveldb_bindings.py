#!/usr/bin/env python3
"""What the calls to LevelDB that a journal makes cost, by which Python binding they are made.

Each of the MODULES, which have the interface of plyvel, fills a database with batches of 1 MiB as a journal
does, reads it in pieces and as a whole, looks items up, deletes them, and opens and closes it. One module
takes its turn after the other, for several rounds. A module that is not installed is left out.
"""

import contextlib
import importlib
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from darner._records import item_key
from darner.journal.database import BLOCK_CACHE_BYTES, MAX_FILE_BYTES, MAX_OPEN_FILES, WRITE_BUFFER_BYTES
from load import options

BATCH_BYTES = 1 << 20
PIECE_ITEMS = 100
OPENINGS = 20
LOOK_UPS = 2000


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.argument("modules", nargs=-1, required=True)
@options.option("-n --items", 50_000, click.IntRange(1000, 10_000_000))
@options.option("--rounds", 5, click.IntRange(1, 100))
@options.data_size(256, options.SMALL_DATA_SIZE)
@options.data_in
def main(modules: tuple[str, ...], items: int, rounds: int, data_size: int, data_in: Path | None) -> None:
    """Measure the bindings side by side, and print medians and ratios to the first."""
    bindings = {}
    for name in modules:
        try:
            bindings[name] = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            click.echo(f"{name} is not installed: left out")
    if not bindings:
        raise click.ClickException("none of these modules is installed")
    figures: dict[str, dict[str, list[float]]] = {name: {} for name in bindings}
    names = list(bindings)
    for _ in range(rounds):
        for name in names:
            with tempfile.TemporaryDirectory(dir=data_in, prefix="darner-bench-") as directory:
                for call, microseconds in measure(bindings[name], directory, items, data_size).items():
                    figures[name].setdefault(call, []).append(microseconds)
        names.append(names.pop(0))
    click.echo(
        f"{items:,} items of {data_size} bytes; microseconds, medians of {rounds}; (ratio to the first)"
    )
    click.echo(" " * 34 + "".join(f"{name:>22}" for name in bindings))
    first = figures[next(iter(bindings))]
    for call, base in first.items():
        line = f"{call:34}"
        for name in bindings:
            median = statistics.median(figures[name][call])
            line += f"{median:12.2f} ({median / statistics.median(base):5.2f}) "
        click.echo(line.rstrip())


def measure(binding: ModuleType, directory: str, items: int, data_size: int) -> dict[str, float]:
    """Return what each call takes, in microseconds of wall clock, or of processor time where it says so.

    That is of all threads, so LevelDB's compactions count.
    """
    took: dict[str, float] = {}
    path = directory.encode()
    keys = [item_key(id) for id in range(items)]
    record = random.Random(1).randbytes(data_size)
    per_batch = max(1, BATCH_BYTES // (len(keys[0]) + data_size))
    db = opened(binding, path, create=True)
    write = db.write_batch(sync=True)
    with (
        timed(took, "put, an item (processor)", items, time.process_time),
        timed(took, "put, an item", items),
    ):
        for start in range(0, items, per_batch):
            write.clear()
            for key in keys[start : start + per_batch]:
                write.put(key, record)
            write.write()
    with timed(took, "read 100 in order, an item", items):
        for start in range(0, items, PIECE_ITEMS):
            stop = item_key(min(start + PIECE_ITEMS, items))
            with db.iterator(start=keys[start], stop=stop, fill_cache=False) as found:
                pieces = [value for _, value in found]
            check(len(pieces) == min(PIECE_ITEMS, items - start) and pieces[-1] == record)
    with timed(took, "read all in order, an item", items), db.iterator(fill_cache=False) as found:
        check(sum(1 for _ in found) == items)
    with timed(took, "keys alone, a key", items), db.iterator(include_value=False, fill_cache=False) as found:
        check(sum(1 for _ in found) == items)
    wanted = random.Random(2).choices(keys, k=LOOK_UPS)
    with timed(took, "get", LOOK_UPS):
        for key in wanted:
            check(db.get(key, fill_cache=False) == record)
    with timed(took, "find the last key", LOOK_UPS):
        for _ in range(LOOK_UPS):
            check(next(iter(db.iterator(start=b"i", stop=b"j", reverse=True)))[0] == keys[-1])
    db.close()
    with timed(took, "open and close", OPENINGS):
        for _ in range(OPENINGS):
            opened(binding, path, create=False).close()
    db = opened(binding, path, create=False)
    write = db.write_batch(sync=True)
    with timed(took, "delete, an item", items):
        for start in range(0, items, per_batch):
            write.clear()
            for key in keys[start : start + per_batch]:
                write.delete(key)
            write.write()
    with timed(took, "compact, an item deleted", items):
        db.compact_range(start=keys[0], stop=keys[-1])
    check(next(iter(db), None) is None)
    db.close()
    return took


def opened(binding: ModuleType, path: bytes, *, create: bool) -> Any:
    """Return the database, opened as a journal opens it."""
    return binding.DB(
        path,
        create_if_missing=create,
        write_buffer_size=WRITE_BUFFER_BYTES,
        lru_cache_size=BLOCK_CACHE_BYTES,
        max_open_files=MAX_OPEN_FILES,
        max_file_size=MAX_FILE_BYTES,
        compression=None,
        paranoid_checks=True,
    )


@contextlib.contextmanager
def timed(
    took: dict[str, float], call: str, count: int, clock: Callable[[], float] = time.perf_counter
) -> Iterator[None]:
    """Put down how many microseconds each of so many calls in the block took."""
    began = clock()
    yield
    took[call] = (clock() - began) / count * 1e6


def check(holds: bool) -> None:
    """Raise ClickException unless what was read is what was written."""
    if not holds:
        raise click.ClickException("a binding does not give back what was written")


if __name__ == "__main__":
    main()
