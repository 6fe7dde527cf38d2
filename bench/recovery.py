#!/usr/bin/env python3
"""How long the server takes to open a large queue after a kill -9.

Fills a queue on a data directory of its own, kills the server with SIGKILL, starts it again, and prints
the time until it listens, and until the first item is there. Counts and the first item are checked.
"""

import time
from pathlib import Path

import click
import own
import raw


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("-n", "--items", default=5_000_000, show_default=True, type=raw.REQUESTS)
@click.option("-d", "--data-size", "size", default=64, show_default=True, type=click.IntRange(1, 65536))
@own.data_in
def main(items: int, size: int, data_in: Path | None) -> None:
    """Fill, kill, start, measure."""
    with own.darner(data_in) as darner:
        load = raw.Load(
            connections=20, requests=items, seconds=3600, pipeline=64, gets=0, size=size, queue="work"
        )
        filled = raw.run(darner.start(), load)
        darner.kill()
        began = time.perf_counter()
        server = darner.start()
        up_s = time.perf_counter() - began
        with server.connect() as connection:
            reply = server.ask(connection, b"get work\r\n", b"END\r\n")
        first_s = time.perf_counter() - began
    click.echo(f"filled      {filled.stored:,} items of {size} bytes in {filled.seconds:.1f} s, then kill -9")
    click.echo(f"listening   {up_s:.3f} s after the start of the process")
    click.echo(f"first item  {first_s - up_s:.4f} s later")
    if not darner.found.endswith(f" items={filled.stored}") or not reply.startswith(b"VALUE work "):
        raise click.ClickException(f"not all is there: {darner.found}, {reply[:40]!r}")


if __name__ == "__main__":
    main()
