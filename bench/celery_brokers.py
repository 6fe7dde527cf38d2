#!/usr/bin/env python3
"""Darner and Redis side by side as the broker of Celery: tasks a second, latency, memory of a backlog.

It starts brokers and workers of its own. A task does nothing but write a line. The rate is that of a backlog
that a worker empties, from the moment at which a tenth is done. The latency is from before a task is sent
until it begins, of tasks that are sent one by one to an idle worker. Within each round the brokers take
turns, and the one that goes first changes from round to round. Ratios are medians of the rounds' ratios.
"""

import json
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from load import brokers, options
from load.brokers import Broker
from load.celery_workers import Project, project
from load.options import option, words

TIMEOUT_S = 300.0
MB = 1e6
# What is measured: its title, and whether more is better.
RATE, PUBLISH = "tasks/s, concurrency {}", "tasks/s published"
LATENCY, LATENCY_P99 = "ms until a task begins, median", "ms until a task begins, p99"
MEMORY = "MB with {:,} waiting"

# By title, the figure of each broker in each round.
Figures = dict[str, dict[str, list[float]]]


def wait_until_done(jobs: Project, count: int) -> None:
    """Wait until so many tasks have begun; ClickException if they do not."""
    if not jobs.wait_for(lambda: len(jobs.numbers()) >= count, TIMEOUT_S):
        raise click.ClickException(
            f"{len(jobs.numbers()):,} of {count:,} tasks were done in {TIMEOUT_S:.0f} s"
        )


def publish_rate(jobs: Project, count: int) -> float:
    """Send so many tasks, and return how many a second."""
    began = time.perf_counter()
    for number in range(count):
        jobs.send(number)
    return count / (time.perf_counter() - began)


def work_rate(jobs: Project, count: int, concurrency: int) -> float:
    """Have a worker do so many tasks that wait, and return how many a second."""
    worker = jobs.start_worker("rate", concurrency)
    wait_until_done(jobs, count)
    worker.stop()
    times = sorted(entry.at for entry in jobs.entries())
    jobs.clear()
    return (count - count // 10) / (times[count - 1] - times[count // 10])


def latencies(jobs: Project, count: int) -> list[float]:
    """Return the milliseconds from before a task is sent until it begins, one task at a time."""
    worker = jobs.start_worker("latency")
    sent = []
    for number in range(count + 1):
        sent.append(time.time())
        jobs.send(number)
        wait_until_done(jobs, number + 1)
    worker.stop()
    # the first one waits for the worker to start
    found = [(entry.at - sent[entry.number]) * 1e3 for entry in jobs.entries() if entry.number]
    jobs.clear()
    return found


def memory(broker: Broker, jobs: Project, count: int) -> float:
    """Let so many tasks wait, and return the broker's resident memory in MB."""
    jobs.send(0)
    broker.multiply(count - 1)
    if broker.waiting() != count:
        raise click.ClickException(f"{broker.name} has {broker.waiting():,} of {count:,} tasks")
    return broker.resident_bytes() / MB


def measure(
    name: str, figures: Figures, tasks: int, samples: int, concurrency: list[int], data_in: Path | None
) -> None:
    """Measure one broker once."""
    with ExitStack() as stack:
        broker = stack.enter_context(brokers.running(name, data_in))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="darner-bench-")))
        jobs = stack.enter_context(project(directory, broker.url))
        for count in concurrency:
            figures[PUBLISH][name].append(publish_rate(jobs, tasks))
            figures[RATE.format(count)][name].append(work_rate(jobs, tasks, count))
        found = latencies(jobs, samples)
        figures[LATENCY][name].append(median(found))
        figures[LATENCY_P99][name].append(quantiles(found, n=100)[98])


def measure_memory(name: str, figures: Figures, waiting: int, data_in: Path | None) -> None:
    """Measure the memory of one broker once, on a broker of its own."""
    with ExitStack() as stack:
        broker = stack.enter_context(brokers.running(name, data_in))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="darner-bench-")))
        jobs = stack.enter_context(project(directory, broker.url))
        figures[MEMORY.format(waiting)][name].append(memory(broker, jobs, waiting))


def report(figures: Figures, names: list[str]) -> None:
    """Print the medians of all brokers, and the ratios of the first to each of the others."""
    first, *others = names
    heads = [*names, *(f"{first}:{other}" for other in others)]
    click.echo(f"{'':<34}" + "".join(f"{head:>22}" for head in heads))
    for title, found in figures.items():
        values = [f"{median(found[name]):,.1f}" for name in names]
        for other in others:
            ratios = [ours / theirs for ours, theirs in zip(found[first], found[other], strict=True)]
            values.append(f"{median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})")
        click.echo(f"{title:<34}" + "".join(f"{value:>22}" for value in values))


@click.command(help=(__doc__ or "").partition("\n")[0])
@option("--broker", ",".join(brokers.NAMES), words(brokers.NAMES), "Any of these; ratios are of the first.")
@option("-n --tasks", 5_000, click.IntRange(100, 1_000_000), "Per measurement.")
@option("-c --concurrency", "1,8", options.numbers(click.IntRange(1, 100)), "Of the worker.")
@option("--samples", 200, click.IntRange(2, 100_000), "Tasks whose latency is measured.")
@option("--waiting", 100_000, options.BACKLOG_ITEMS, "Tasks whose memory is measured; 0: not at all.")
@option("--rounds", 3, click.IntRange(1, 100))
@options.data_in
@options.json_file
def main(
    broker: list[str],
    tasks: int,
    concurrency: list[int],
    samples: int,
    waiting: int,
    rounds: int,
    data_in: Path | None,
    json_file: Path | None,
) -> None:
    """Measure the brokers in turn, and print a table."""
    names = brokers.available(broker)
    figures: Figures = defaultdict(lambda: defaultdict(list))
    for round in range(rounds):
        turn = round % len(names)
        for name in (*names[turn:], *names[:turn]):
            measure(name, figures, tasks, samples, concurrency, data_in)
            if waiting and not round:
                measure_memory(name, figures, waiting, data_in)
    click.echo(f"{rounds} rounds of {tasks:,} tasks; medians, and the range of the ratios")
    report(figures, names)
    if json_file:
        json_file.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
