#!/usr/bin/env python3
"""A cron whose schedule is in the server: run one, or several on several machines, and kill any of them.

    python examples/cron.py examples/crontab.toml

Each job has one delayed item on the queue `ticks`. When it comes out, the job is put on the queue `jobs`,
and the next tick is put with a delay. A run and a tick have ids made of the job and the time they are
for, so that none is there twice: not if several of these start at once, nor if one is killed between its
puts and its close and the tick comes out again.

A job that was running when its cron was killed is run again by the next one. It finds the time it is for
in `$DUE`, in seconds of the Unix epoch, and can tell by it what it has done already.

A job that fails is run again after a pause that doubles. With `max_attempts` and `dead_letter_queue`, as
in examples/darner.toml, it ends in `jobs.failed` after three attempts; without them it is tried for as
long as it fails.
"""

import os
import subprocess
import time
import tomllib
from pathlib import Path
from typing import Any

import click

from darner.client import Client, ConnectionFailedError, ConnectionLostError

Crontab = dict[str, dict[str, Any]]


def schedule(client: Client, job: str, every: int, after: float) -> None:
    """Put the tick of a job for the first multiple of its period after this time."""
    due = int(after // every + 1) * every
    client.put("ticks", {"job": job, "due": due}, delay=max(due - time.time(), 0), id=f"{job}@{due}")


def tick(client: Client, crontab: Crontab, job: str, due: int) -> None:
    """Put a job on the queue, and schedule its next tick; forget a job that left the crontab."""
    if job in crontab:
        client.put("jobs", {"job": job, "due": due}, id=f"{job}@{due}")
        # Ticks that were missed while nothing ran are not made up for.
        schedule(client, job, crontab[job]["every"], after=max(due, time.time()))


def run(crontab: Crontab, job: str, due: int) -> None:
    """Run a job; CalledProcessError if it fails."""
    if job in crontab:
        subprocess.run(crontab[job]["command"], shell=True, check=True, env=os.environ | {"DUE": str(due)})


def work(client: Client, crontab: Crontab) -> None:
    """Wait for a tick or a job, ticks first, and do it."""
    with client.reserve(["ticks", "jobs"], timeout=60) as item:
        if item is None:
            return
        if item.queue == "ticks":
            tick(client, crontab, **item.value)
            return
        try:
            run(crontab, **item.value)
        except subprocess.CalledProcessError as error:
            click.echo(f"attempt {item.attempts + 1}: {error}", err=True)
            item.retry(delay=2**item.attempts)


@click.command
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--server", envvar="DARNER_URL", default="darner://127.0.0.1:22133", show_default=True)
def main(file: Path, server: str) -> None:
    """Run the jobs of a crontab."""
    crontab: Crontab = tomllib.loads(file.read_text())
    scheduled = False
    with Client(server, codec="json") as client:
        while True:
            try:
                while not scheduled:
                    for job, entry in crontab.items():
                        schedule(client, job, entry["every"], after=time.time())
                    scheduled = True
                work(client, crontab)
            except (ConnectionFailedError, ConnectionLostError) as error:
                click.echo(f"{error}; trying again", err=True)
                time.sleep(1)


if __name__ == "__main__":
    main()
