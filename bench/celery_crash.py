#!/usr/bin/env python3
"""What becomes of Celery's tasks when a worker or the broker is killed, and of those that outlive a timer.

It starts brokers and workers of its own, and kills them by SIGKILL. For each crash and broker it says how
many tasks were sent, how many never ran, how many ran again, and how long it took from the crash until one
ran, and until all had. `redis-aof-4s` is a Redis with `visibility_timeout` 4 s in place of an hour, so that
it need not be waited for.
"""

import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parents[1]))

from load import brokers, options
from load.brokers import Broker
from load.celery_workers import GATE, Project, project
from load.options import option, words

SHORT_TIMEOUT_S = 4
# It is looked at every second then, not every 100 s.
SHORT_OPTIONS = {
    "visibility_timeout": SHORT_TIMEOUT_S,
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
}
SHORT = f"-{SHORT_TIMEOUT_S}s"
BROKERS = (*brokers.NAMES, f"redis-aof{SHORT}")
# How long a worker may take to start, and how long nothing may happen until it is given up.
START_S, PATIENCE_S = 60.0, 15.0


@dataclass
class Found:
    """What the ledger says. `first_s` and `all_s` are from the crash until a task ran, and until all had."""

    broker: str
    crash: str
    sent: int
    lost: int
    again: int
    first_s: float
    all_s: float


class Crash:
    """One broker with one project, and what was sent to it."""

    def __init__(self, broker: Broker, jobs: Project) -> None:
        self.broker = broker
        self.jobs = jobs
        self.sent: list[int] = []

    def send(self, number: int, seconds: float = 0.0, **options: Any) -> None:
        """Send a task, and note that the broker has it."""
        self.jobs.send(number, seconds, **options)
        self.sent.append(number)

    def started(self, name: str, *options: str) -> None:
        """Start a worker, and wait until it says that it is ready."""
        worker = self.jobs.start_worker(name, 1, "--loglevel", "INFO", *options)
        if not self.jobs.wait_for(lambda: " ready." in worker.log, START_S):
            raise click.ClickException(f"a worker at {self.broker.name} does not start:\n{worker.log}")

    def settle(self, word: str = "began") -> None:
        """Wait until each task that was sent has run, or nothing has happened for a while."""
        count = 0

        def went_on() -> bool:
            return len(self.jobs.numbers(word)) > count

        while not self.all_ran(word) and self.jobs.wait_for(went_on, PATIENCE_S):
            count = len(self.jobs.numbers(word))

    def all_ran(self, word: str = "began") -> bool:
        """Return whether each task that was sent has run."""
        return set(self.jobs.numbers(word)) >= set(self.sent)

    def found(self, name: str, began: float, before: int = 0, word: str = "began") -> Found:
        """Return what the ledger says; `before` of its entries are from before the crash."""
        entries = self.jobs.entries(word)
        runs = Counter(entry.number for entry in entries)
        after = [entry.at for entry in entries[before:]]
        firsts: dict[int, float] = {}
        for entry in entries:
            firsts.setdefault(entry.number, entry.at)
        return Found(
            broker=self.broker.name,
            crash=name,
            sent=len(self.sent),
            lost=len(set(self.sent) - set(runs)),
            again=sum(count - 1 for count in runs.values()),
            first_s=max(min(after) - began, 0.0) if after else -1.0,
            all_s=max(max(firsts.values()) - began, 0.0) if set(self.sent) <= set(runs) else -1.0,
        )


def kill_worker(crash: Crash) -> Found:
    """Kill a worker that has 100 tasks in hand, while another one has nothing to do."""
    first = crash.jobs.start_worker("first", 1, "--prefetch-multiplier", "100")
    for number in range(100):
        crash.send(number, GATE)
    crash.jobs.wait_for(crash.jobs.numbers, START_S)
    crash.started("second", "--prefetch-multiplier", "100")
    before = len(crash.jobs.numbers())
    began = time.time()
    first.kill()
    crash.jobs.open_gate()
    crash.settle("ended")
    return crash.found("a worker is killed", began, before)


def kill_broker(crash: Crash) -> Found:
    """Kill the broker three times, and start it again, while tasks are sent and run."""
    crash.started("only")
    done = threading.Event()

    def produce() -> None:
        number = 0
        while not done.is_set():
            # a task that was refused or whose reply was lost is not counted, whether it runs or not
            try:
                crash.send(number, retry=False)
            except Exception:  # each broker has errors of its own
                time.sleep(0.05)
            number += 1

    producer = threading.Thread(target=produce)
    producer.start()
    for _ in range(3):
        time.sleep(1)
        crash.broker.kill()
        time.sleep(0.2)
        crash.broker.start()
        began = time.time()
        before = len(crash.jobs.numbers())
    time.sleep(1)
    done.set()
    producer.join()
    crash.settle()
    return crash.found("the broker is killed", began, before)


def outlive(crash: Crash) -> Found:
    """Run a task that takes longer than the timer, while another worker has nothing to do."""
    crash.started("first", "--prefetch-multiplier", "1")
    crash.started("second", "--prefetch-multiplier", "1")
    began = time.time()
    crash.send(0, SHORT_TIMEOUT_S * 3.0)
    crash.jobs.wait_for(crash.all_ran, START_S)
    time.sleep(SHORT_TIMEOUT_S * 3.5)
    return crash.found(f"a task takes {SHORT_TIMEOUT_S * 3} s", began)


def wait_long(crash: Crash) -> Found:
    """Send a task whose countdown is longer than the timer."""
    crash.started("first")
    crash.started("second")
    began = time.time()
    crash.send(0, countdown=SHORT_TIMEOUT_S * 3)
    crash.jobs.wait_for(crash.all_ran, START_S)
    time.sleep(SHORT_TIMEOUT_S)
    return crash.found(f"a countdown of {SHORT_TIMEOUT_S * 3} s", began)


CRASHES: dict[str, Callable[[Crash], Found]] = {
    "worker": kill_worker,
    "broker": kill_broker,
    "long-task": outlive,
    "countdown": wait_long,
}


def run(name: str, crash: str, data_in: Path | None) -> Found:
    """Start a broker, let the crash happen, and return what the ledger says."""
    settings: dict[str, Any] = {"task_acks_late": True}
    if name.endswith(SHORT):
        settings["broker_transport_options"] = SHORT_OPTIONS
    with ExitStack() as stack:
        broker = stack.enter_context(brokers.running(name.removesuffix(SHORT), data_in))
        broker.name = name
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="darner-bench-")))
        jobs = stack.enter_context(project(directory, broker.url, **settings))
        return CRASHES[crash](Crash(broker, jobs))


def line(found: Found) -> str:
    """Return the line of the table."""
    times = ["never" if at < 0 else f"{at:.1f} s" for at in (found.first_s, found.all_s)]
    counts = f"{found.sent:>6}{found.lost:>6}{found.again:>6}"
    return f"{found.crash:<24}{found.broker:<14}{counts}{times[0]:>10}{times[1]:>10}"


@click.command(help=(__doc__ or "").partition("\n")[0])
@option("--broker", ",".join(BROKERS), words(BROKERS), "Any of these.")
@option("--crash", ",".join(CRASHES), words(tuple(CRASHES)), "Any of these.")
@options.data_in
@options.json_file
def main(broker: list[str], crash: list[str], data_in: Path | None, json_file: Path | None) -> None:
    """Let each crash happen to each broker, and print a table."""
    click.echo(f"{'':<24}{'':<14}{'sent':>6}{'lost':>6}{'again':>6}{'first':>10}{'all':>10}")
    everything = []
    for one in crash:
        for name in brokers.available(broker):
            found = run(name, one, data_in)
            everything.append(asdict(found))
            click.echo(line(found))
    if json_file:
        json_file.write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
