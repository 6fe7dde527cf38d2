#!/usr/bin/env python3
"""How long the server takes to open a large queue after a kill -9.

Fills a queue on a data directory of its own, kills the server with SIGKILL, starts it again, and prints the
time until it listens and until it has served the first item. Counts and the first item are checked.
"""

import sys
import time
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from load import options, raw
from single.own_server import own_server


@click.command(help=(__doc__ or "").partition("\n")[0])
@options.option("-n --items", 5_000_000, options.REQUESTS)
@options.data_size(64, options.SMALL_DATA_SIZE)
@options.data_in
def main(items: int, data_size: int, data_in: Path | None) -> None:
    """Fill a queue, kill the server, start it again and measure."""
    with own_server(data_in) as darner:
        filled = raw.fill(darner.start(), "work", items, data_size)
        darner.kill()
        began = time.perf_counter()
        server = darner.start()
        up_s = time.perf_counter() - began
        with server.connect() as connection:
            reply = server.ask(connection, b"get work\r\n", b"END\r\n")
        first_s = time.perf_counter() - began
    click.echo(
        f"filled      {filled.stored:,} items of {data_size} bytes in {filled.seconds:.1f} s, then kill -9"
    )
    click.echo(f"listening   {up_s:.3f} s after the start of the process")
    click.echo(f"first item  {first_s - up_s:.4f} s later")
    if not darner.found.endswith(f" items={filled.stored}") or not reply.startswith(b"VALUE work "):
        raise click.ClickException(f"not all is there: {darner.found}, {reply[:40]!r}")


if __name__ == "__main__":
    main()
