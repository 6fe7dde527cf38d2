#!/usr/bin/env python3
"""A log shipper: follows a log file, and builds a copy of it elsewhere, byte for byte.

    python examples/log_shipper.py ship /var/log/syslog
    python examples/log_shipper.py collect /tmp/collected

Either may be killed at any moment, and so may the server; started again, they go on, and the copy is
still the same:

- `ship` notes how far it is in `<file>.shipped` once its lines are stored. Killed in between, it sends
  them again. Each line has an id, its place in the file, so that the server stores it once.
- `collect` removes lines from the queue once they are written. Killed in between, it gets them again, and
  writes them to the same place.

Several collectors share the work. They take `BATCH` lines at a time if the server has `max_open_reads`
for it, as in examples/darner.toml.
"""

import itertools
import os
import socket
import time
from pathlib import Path
from urllib.parse import quote

import click

from darner.client import Client, ClientError

BATCH = 100
QUEUE = "log"


@click.group()
@click.option("--server", envvar="DARNER_URL", default="darner://127.0.0.1:22133", show_default=True)
@click.pass_context
def main(context: click.Context, server: str) -> None:
    """Ship the lines of a log, or collect them."""
    context.obj = context.with_resource(Client(server))


@main.command
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.pass_obj
def ship(client: Client, file: Path) -> None:
    """Put the lines of a file on the queue, those to come as well."""
    source = quote(f"{socket.gethostname()}-{file.name}", safe="")
    noted = file.with_name(file.name + ".shipped")
    offset = int(noted.read_text()) if noted.exists() else 0
    with file.open("rb") as log:
        while True:
            log.seek(offset)
            lines = [line for line in itertools.islice(log, BATCH) if line.endswith(b"\n")]
            if not lines:
                time.sleep(0.2)
                continue
            *starts, end = itertools.accumulate(map(len, lines), initial=offset)
            values = [
                b"%s %d\n%s" % (source.encode(), start, line)
                for start, line in zip(starts, lines, strict=True)
            ]
            try:
                client.put_many(QUEUE, values, ids=[f"{source}:{start}" for start in starts])
            except ClientError as error:
                click.echo(f"{error}; sending these lines again", err=True)
                time.sleep(1)
                continue
            offset = end
            note(noted, offset)


def note(path: Path, offset: int) -> None:
    """Write a number to a file, so that a kill leaves the number before or this one."""
    new = path.with_name(path.name + ".new")
    new.write_text(str(offset))
    new.replace(path)


@main.command
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.pass_obj
def collect(client: Client, directory: Path) -> None:
    """Write the lines on the queue to files in a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            with client.reserve_many(QUEUE, BATCH, timeout=60) as items:
                for item in items:
                    head, _, line = item.value.partition(b"\n")
                    source, start = head.decode().split()
                    write_at(directory / source, int(start), line)
        except ClientError as error:
            click.echo(f"{error}; trying again", err=True)
            time.sleep(1)


def write_at(path: Path, start: int, line: bytes) -> None:
    """Write a line to its place in a file, whatever is written before it and behind it already."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(file, line, start)
    finally:
        os.close(file)


if __name__ == "__main__":
    main()
