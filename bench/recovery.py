#!/usr/bin/env python3
"""How long the server takes to open a large queue after a kill -9.

Fills a queue on a data directory of its own, kills the server with SIGKILL, starts it again, and prints
the time until it listens, and until the first item is there. Counts and the first item are checked.
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from raw import Load, run
from servers import Server

DARNER = str(Path(sys.executable).with_name("darner"))


def start(data: Path) -> tuple[subprocess.Popen[str], Server, str]:
    """Start the console script on `data`; returns it when it listens, and its last start-up line."""
    process = subprocess.Popen(
        [DARNER, "--data", str(data), "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    port = 0
    for line in process.stderr:
        if found := re.search(r"event=listening host=\S+ port=(\d+)", line):
            port = int(found[1])
        if "event=data" in line:
            return process, Server("darner", "127.0.0.1", port, process.pid), line
    raise click.ClickException(f"{DARNER} does not start on {data}")


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("-n", "--items", default=5_000_000, show_default=True, type=click.IntRange(1, 100_000_000))
@click.option("-d", "--data-size", "size", default=64, show_default=True, type=click.IntRange(1, 65536))
def main(items: int, size: int) -> None:
    """Fill, kill, start, measure."""
    with tempfile.TemporaryDirectory(prefix="darner-recovery-") as directory:
        process, server, _ = start(Path(directory))
        load = Load(
            connections=20, requests=items, seconds=3600, pipeline=64, sets=1, gets=0, size=size, queue="work"
        )
        filled = run(server, load)
        process.kill()
        process.wait()
        began = time.perf_counter()
        process, server, line = start(Path(directory))
        up_s = time.perf_counter() - began
        with server.connect() as connection:
            reply = server.ask(connection, b"get work\r\n", b"END\r\n")
        first_s = time.perf_counter() - began
        process.terminate()
        process.wait()
    click.echo(f"filled      {filled.stored:,} items of {size} bytes in {filled.seconds:.1f} s, then kill -9")
    click.echo(f"listening   {up_s:.3f} s after the start of the process")
    click.echo(f"first item  {first_s - up_s:.4f} s later")
    if f" items={filled.stored}\n" not in line or not reply.startswith(b"VALUE work "):
        raise click.ClickException(f"not all is there: {line.strip()}, {reply[:40]!r}")


if __name__ == "__main__":
    main()
