#!/usr/bin/env python3
"""How long the server takes to open a large queue, or many queues, after a kill -9.

Fills queues on a data directory of its own, kills the server with SIGKILL, starts it again, and prints the
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
@options.option("--queues", 1, click.IntRange(1, 100_000), "Queues that the items are spread over.")
@options.option("--wait", 0.0, click.FloatRange(0, 3600), "Seconds from the last set to the kill.")
@options.data_size(64, options.SMALL_DATA_SIZE)
@options.data_in
def main(items: int, queues: int, wait: float, data_size: int, data_in: Path | None) -> None:
    """Fill queues, kill the server, start it again and measure."""
    name = "work" if queues == 1 else "work0"
    with own_server(data_in) as darner:
        filled = raw.fill(darner.start(), "work", items, data_size, queues=queues)
        time.sleep(wait)
        darner.kill()
        began = time.perf_counter()
        server = darner.start()
        up_s, cpu_s = time.perf_counter() - began, server.cpu_s()
        with server.connect() as connection:
            reply = server.ask(connection, f"get {name}\r\n".encode(), b"END\r\n")
        first_s = time.perf_counter() - began
    click.echo(
        f"filled      {filled.stored:,} items of {data_size} bytes in {queues:,} queues in"
        f" {filled.seconds:.1f} s, then kill -9 after {wait:g} s"
    )
    click.echo(f"listening   {up_s:.3f} s after the start of the process, {cpu_s:.2f} s of processor time")
    click.echo(f"first item  {first_s - up_s:.4f} s later")
    if not darner.found.endswith(f" items={filled.stored}") or not reply.startswith(
        f"VALUE {name} ".encode()
    ):
        raise click.ClickException(f"not all is there: {darner.found}, {reply[:40]!r}")


if __name__ == "__main__":
    main()
