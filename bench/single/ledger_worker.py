"""A worker process of client_ledger.py, which may be killed at any instant.

    python bench/single/ledger_worker.py reserve darner://127.0.0.1:22133 DIRECTORY QUEUE...

A line is written for each delivery before the item is closed, in one call to the system: so that whatever
left a queue is on record. `DIRECTORY` has one file for each process.
"""

import os
import random
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from darner.client import Client, ConnectionFailedError, ConnectionLostError, Reservation
from darner.work import Item

DIRECTORY = "DARNER_LEDGER"
CHANGED = "changed"
# One in so many deliveries fails, and is tried again after a pause.
FAILS, PAUSE_S = 50, 0.05
# How long a worker works on an item, so that a kill finds it at work.
WORK_S_MAX = 0.01
BATCH = 8
WAIT_S = 1.0
DONE, FAILED = "done", "failed"

_files: dict[int, int] = {}


class FailedError(Exception):
    """A worker could not do its work."""


def item_of(name: str, body: bytes) -> bytes:
    """Return the item of this name, with a checksum."""
    return b"%s %d " % (name.encode(), zlib.crc32(body)) + body


def name_of(value: bytes) -> str:
    """Return the name of an item, CHANGED if it is not as it was put."""
    try:
        name, checksum, body = value.split(b" ", 2)
        return name.decode() if int(checksum) == zlib.crc32(body) else CHANGED
    except ValueError:
        return CHANGED


def note(outcome: str, item: Item | Reservation) -> None:
    """Write down that an item was delivered."""
    process = os.getpid()
    if process not in _files:
        # A number of a process may come again, and the last line of a killed one may be cut off.
        path = Path(os.environ[DIRECTORY]) / f"{process}-{time.time_ns()}"
        _files[process] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    line = f"{outcome} {item.queue} {item.server} {item.id} {item.attempts} {name_of(item.value)}\n"
    os.write(_files[process], line.encode())


def handle(item: Item | Reservation) -> None:
    """Work on an item for a moment and note it; FailedError if the work fails."""
    time.sleep(random.uniform(0, WORK_S_MAX))  # work; nothing waits for it to be over
    if random.randrange(FAILS) == 0:
        note(FAILED, item)
        raise FailedError
    note(DONE, item)


def reserve(client: Client, queues: list[str]) -> None:
    """Handle one item."""
    with client.reserve(queues, timeout=WAIT_S) as item:
        if item is not None:
            try:
                handle(item)
            except FailedError:
                item.retry(delay=PAUSE_S)


def reserve_many(client: Client, queues: list[str]) -> None:
    """Handle a batch of items from one of the queues; those that fail go back alone."""
    with client.reserve_many(random.choice(queues), BATCH, timeout=WAIT_S) as items:
        for item in items:
            try:
                handle(item)
            except FailedError:
                item.retry(delay=PAUSE_S)


LOOPS: dict[str, Callable[[Client, list[str]], None]] = {"reserve": reserve, "reserve_many": reserve_many}


def main(how: str, servers: str, queues: list[str]) -> None:
    """Handle items until somebody ends this process."""
    with Client(servers.split(",")) as client:
        while True:
            try:
                LOOPS[how](client, queues)
            except (ConnectionFailedError, ConnectionLostError):
                time.sleep(0.05)  # the server was killed: it is started again


if __name__ == "__main__":
    how, servers, *queues = sys.argv[1:]
    main(how, servers, queues)
