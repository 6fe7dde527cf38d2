#!/usr/bin/env python3
"""Proof on real input: a log file goes through a server that is killed again and again, and comes out whole.

One thread sets the file line by line, and sends a line again if its acknowledgement did not come. Another
reserves an item (`get work/open`), notes it and closes it (`get work/close`). Meanwhile the server is killed
with SIGKILL at random moments and started again on the same data.

The flags of an item are the number of its line, and each client keeps a ledger of the lines whose state a
kill left open. A line may come twice for three reasons only:

- it was reserved at the kill, its close not sent: then it must come again, and first;
- the kill cut off the acknowledgement of its close: it may come again;
- the kill cut off the acknowledgement of its set: it may be in the queue twice, as it was sent again.
"""

import io
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click
from pymemcache.client.base import Client  # type: ignore[import-untyped,unused-ignore]
from pymemcache.exceptions import MemcacheUnexpectedCloseError  # type: ignore[import-untyped,unused-ignore]

sys.path.insert(0, str(Path(__file__).parents[1]))

from load import options
from load.options import option
from single.own_server import OwnServer

COMMON_LOGS = ("dpkg.log", "syslog", "messages", "alternatives.log", "install.log", "system.log")
MIN_LINES = 100
# Without progress for so long something hangs.
STALL_S = 30.0
# How long a kill that is to find a line reserved waits for one.
HOLD_S = 1.0
# A kill comes up to this long after the line it was drawn for, so that it falls anywhere in a request.
SPREAD_S = 0.003
RESERVED = "reserved at kill"
CLOSE_CUT = "close cut off by kill"
SET_CUT = "set cut off by kill"
LOST = (OSError, MemcacheUnexpectedCloseError)


class ViolationError(Exception):
    """The server lost, changed or repeated a line, or did not answer."""


class LineSerde:
    """Encodes a numbered line as an item whose flags are the number."""

    def serialize(self, _: str, value: tuple[int, bytes]) -> tuple[bytes, int]:
        """Return the line, and its number as flags."""
        return value[1], value[0]

    def deserialize(self, _: str, value: bytes, flags: int) -> tuple[int, bytes]:
        """Return the number and the line."""
        return flags, value


class Server:
    """A server in one life after another, and how far its two clients are."""

    def __init__(self, own: OwnServer) -> None:
        self._own = own
        self._changed = threading.Condition()
        self._up = self._hold = self._held = False
        self.life = 0
        self.lines_set = self.lines_drained = 0
        self.failure: BaseException | None = None
        self.start()

    def start(self) -> None:
        """Start the server and let the clients connect."""
        port = self._own.start().port
        with self._changed:
            self._port = port
            self.life += 1
            self._up = True
            self._changed.notify_all()

    def kill(self, *, while_reserved: bool) -> None:
        """Kill the server; if `while_reserved`, at a moment at which the reader has a line reserved."""
        with self._changed:
            self._hold = while_reserved
            if while_reserved:
                self._changed.wait_for(lambda: self._held or self.failure, HOLD_S)
            self._up = self._hold = self._held = False
            self._own.kill()

    def hold(self) -> bool:
        """Return whether a kill wants the reader to keep its line reserved; if so, after that kill."""
        with self._changed:
            if self._hold:
                life, self._held = self.life, True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self.life != life, STALL_S)
                return True
        return False

    def connect(self) -> tuple[int, Client]:
        """Wait until the server is up; return its life and a client connected to it."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._up or self.failure, STALL_S)
                if self.failure or not self._up:
                    raise ViolationError("the server did not come back")
                life, address = self.life, ("127.0.0.1", self._port)
            client = Client(address, serde=LineSerde(), default_noreply=False, connect_timeout=10, timeout=10)
            try:
                client.version()
            except LOST:
                self.excuse(life)
            else:
                return life, client

    def excuse(self, life: int) -> None:
        """Raise ViolationError if a connection of this life was lost without a kill."""
        with self._changed:
            if self._up and self.life == life:
                raise ViolationError("a connection was lost, and nobody had killed the server")

    def progress(self, *, set_to: int = 0, drained_to: int = 0) -> None:
        """Note the last line that was set, or drained."""
        with self._changed:
            self.lines_set = max(self.lines_set, set_to)
            self.lines_drained = max(self.lines_drained, drained_to)
            self._changed.notify_all()

    @property
    def _lines_done(self) -> int:
        return self.lines_set + self.lines_drained

    def wait_for_progress(self, lines: int) -> bool:
        """Wait until so many lines were set and drained together; return False if a client has failed."""
        with self._changed:
            while not self.failure and (done := self._lines_done) < lines:
                if not self._changed.wait_for(lambda: self.failure or self._lines_done > done, STALL_S):
                    self.failure = ViolationError(f"no progress in {STALL_S:.0f} s")
            return not self.failure

    def client_ended(self, future: "Future[Any]") -> None:
        """Note the error that made a client give up."""
        with self._changed:
            self.failure = self.failure or future.exception()
            self._changed.notify_all()


class Worker:
    """A client that connects again after each kill, and keeps the ledger of the lines left open."""

    def __init__(self, server: Server) -> None:
        self._server = server
        # by line: why it may come again, and after which kill
        self.ledger: defaultdict[int, list[tuple[str, int]]] = defaultdict(list)
        self._life, self._client = server.connect()

    def request(self, call: Callable[[Client], Any]) -> tuple[Any, bool]:
        """Return the answer, and whether there was one; a kill may have cut it off."""
        try:
            return call(self._client), True
        except LOST:
            self._server.excuse(self._life)
            return None, False

    def reconnect(self, number: int = 0, why: str = "") -> None:
        """Connect again after a kill that left line `number` open."""
        if number:
            self.ledger[number].append((why, self._life))
        self._client.close()
        self._life, self._client = self._server.connect()


def produce(server: Server, lines: list[bytes]) -> Worker:
    """Set every line, and again if its acknowledgement did not come."""
    worker = Worker(server)
    for number, line in enumerate(lines, 1):
        answered = False
        while not answered:
            stored, answered = worker.request(partial(Client.set, key="work", value=(number, line)))
            if not answered:
                worker.reconnect(number, SET_CUT)
        if not stored:
            raise ViolationError(f"line {number} was not stored")
        server.progress(set_to=number)
    return worker


def drain(server: Server, total: int) -> tuple[Worker, list[tuple[int, bytes]]]:
    """Reserve, note and close items until all lines are set and drained; return them in order."""
    worker = Worker(server)
    seen: list[tuple[int, bytes]] = []
    while True:
        all_set = server.lines_set == total
        item, answered = worker.request(lambda client: client.get("work/open/t=200"))
        if not answered:
            worker.reconnect()  # an item may have been reserved, but not seen
        elif item is not None:
            seen.append(item)
            if server.hold():
                worker.reconnect(item[0], RESERVED)
            elif not worker.request(lambda client: client.get("work/close"))[1]:
                worker.reconnect(item[0], CLOSE_CUT)
            else:
                server.progress(drained_to=item[0])
        elif all_set:
            return worker, seen


def check(
    lines: list[bytes], seen: list[tuple[int, bytes]], allowed: dict[int, list[tuple[str, int]]]
) -> tuple[bytes, list[str], list[str]]:
    """Return the drained file without repeats, a line about each repeat, and the violations."""
    whole, repeats, violations, last = [], Counter[int](), [], 0
    for number, line in seen:
        if number == last:
            repeats[number] += 1
        elif number != last + 1:
            violations.append(f"line {number} came after line {last}")
        if not 0 < number <= len(lines) or line != lines[number - 1]:
            violations.append(f"line {number} came out changed")
        if number != last:
            whole.append(line)
        last = number
    if last != len(lines):
        violations.append(f"the last line to come was {last} of {len(lines)}")
    for number in sorted(repeats.keys() | allowed.keys()):
        must = sum(why == RESERVED for why, _ in allowed.get(number, ()))
        if not must <= repeats[number] <= len(allowed.get(number, ())):
            violations.append(f"line {number} was repeated {repeats[number]} times: {allowed.get(number)}")
    about = [
        f"line {number}, {count} more: " + ", ".join(f"{why} {life}" for why, life in allowed.get(number, ()))
        for number, count in sorted(repeats.items())
    ]
    return b"".join(whole), about, violations


def replay(lines: list[bytes], server: Server, kills: int, chance: random.Random) -> tuple[Any, ...]:
    """Send the lines through the server and kill it so often; return the result of `check`."""
    moments = sorted(chance.sample(range(1, 2 * len(lines)), kills))
    with ThreadPoolExecutor(2) as pool:
        producer, reader = pool.submit(produce, server, lines), pool.submit(drain, server, len(lines))
        for client in (producer, reader):
            client.add_done_callback(server.client_ended)
        for moment in moments:
            if not server.wait_for_progress(moment):
                break
            time.sleep(chance.uniform(0, SPREAD_S))  # so that a kill falls anywhere; nothing waits for this
            server.kill(while_reserved=chance.random() < 0.5)
            server.start()
        reader.exception(), producer.exception()  # wait for both
        if server.failure:
            raise server.failure
        worker, seen = reader.result()
        ledgers = (producer.result().ledger, worker.ledger)
    allowed = {n: [why for ledger in ledgers for why in ledger.get(n, [])] for n in set().union(*ledgers)}
    whole, repeats, violations = check(lines, seen, allowed)
    if (left := int(server.connect()[1].stats()[b"curr_items"])) != 0:
        violations.append(f"{left} items are left in the queue")
    return whole, repeats, violations


def common_log() -> Path:
    """Return the first of the common log files that is readable and long enough."""
    for path in (Path("/var/log") / name for name in COMMON_LOGS):
        try:
            if path.read_bytes().count(b"\n") >= MIN_LINES:
                return path
        except OSError:
            continue
    raise click.UsageError("no log file with enough lines in /var/log: give one")


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False)
@option("--kills", 20, click.IntRange(0), "How often to kill.")
@options.seed("Of the moments to kill at.")
@click.option("--data", type=click.Path(path_type=Path), help="Data directory.  [default: temporary]")
@click.option("--output", type=click.Path(path_type=Path), help="Where the drained file goes.")
def main(file: Path | None, kills: int, seed: int | None, data: Path | None, output: Path | None) -> None:
    """Run the proof and print the result."""
    file = file or common_log()
    content = file.read_bytes()  # all at once, as a log may grow meanwhile
    lines = io.BytesIO(content).readlines()
    if kills > len(lines):
        raise click.UsageError(f"{file} has {len(lines)} lines: too few for {kills} kills")
    seed = random.randrange(1 << 32) if seed is None else seed
    directory = Path(tempfile.mkdtemp(prefix="darner-replay-"))
    output = output or directory / "drained"
    started = time.monotonic()
    server = Server(OwnServer(directory, data=data))
    try:
        if server.connect()[1].stats()[b"curr_items"] != 0:
            raise click.UsageError(f"{data} has items in it: give a directory of its own")
        whole, repeats, violations = replay(lines, server, kills, random.Random(seed))
    except ViolationError as violation:
        whole, repeats, violations = b"", [], [str(violation)]
    finally:
        server.kill(while_reserved=False)
    output.write_bytes(whole)
    same = output.read_bytes() == content
    size, seconds = len(content), time.monotonic() - started
    click.echo(f"file      {file}\nlines     {len(lines)}\nbytes     {size}\nkills     {kills} (seed {seed})")
    click.echo(f"seconds   {seconds:.1f}\nrepeats   {len(repeats)}")
    for text in [*repeats, *(f"VIOLATION: {violation}" for violation in violations)]:
        click.echo(f"          {text}")
    click.echo(f"drained   {'the same, byte for byte' if same else f'NOT THE SAME, see {output}'}")
    if violations or not same:
        sys.exit(1)
    shutil.rmtree(directory)


if __name__ == "__main__":
    main()
