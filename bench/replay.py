#!/usr/bin/env python3
"""Proof on real input: a log file goes through a server that is killed again and again, and comes out whole.

One thread sets the file line by line, and sends a line again whose acknowledgement did not come. Another
reserves (`get work/open`), notes and closes (`get work/close`) what it gets. Meanwhile the server is
killed with SIGKILL at random moments and started again on the same data.

How the script tells what it sees: each item carries the number of its line in its flags, and each client
keeps a ledger of what a kill left open. A line may be seen twice for three reasons only:

- it was reserved at the kill, its close not sent: then it must be seen again, and first;
- the kill cut off the acknowledgement of its close: it may have come back;
- the kill cut off the acknowledgement of its set: it may be there twice, since it was sent again.
"""

import io
import queue
import random
import re
import shutil
import subprocess
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

DARNER = str(Path(sys.executable).with_name("darner"))
COMMON_LOGS = ("dpkg.log", "syslog", "messages", "alternatives.log", "install.log", "system.log")
MIN_LINES = 100
START_S = 20.0
# No progress for so long: something hangs.
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
    """The server broke a promise."""


class LineSerde:
    """The number of a line travels in the flags of its item."""

    def serialize(self, _: str, value: tuple[int, bytes]) -> tuple[bytes, int]:
        """Return the line, and its number as flags."""
        return value[1], value[0]

    def deserialize(self, _: str, value: bytes, flags: int) -> tuple[int, bytes]:
        """Return number and line."""
        return flags, value


class Server:
    """The console script `darner` on one data directory, in one life after another."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._changed = threading.Condition()
        self._up = self._hold = self._held = False
        self.life = 0
        self.lines_set = self.lines_drained = 0
        self.failure: BaseException | None = None
        self.start()

    def start(self) -> None:
        """Start it and wait until it serves."""
        self._process = subprocess.Popen(
            [DARNER, "--data", str(self._data), "--port", "0"], stderr=subprocess.PIPE, text=True
        )
        log: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read_log, args=(self._process, log), daemon=True).start()
        said, deadline = "", time.monotonic() + START_S
        while "event=data" not in said:
            try:
                line = log.get(timeout=max(deadline - time.monotonic(), 0))
            except queue.Empty:
                line = ""
            if not line:
                self._process.kill()
                raise click.ClickException(f"{DARNER} does not start on {self._data}:\n{said.strip()}")
            said += line
        with self._changed:
            self._port = int(re.findall(r"event=listening host=\S+ port=(\d+)", said)[0])
            self.life += 1
            self._up = True
            self._changed.notify_all()

    @staticmethod
    def _read_log(process: "subprocess.Popen[str]", log: "queue.SimpleQueue[str]") -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                log.put(line)
        log.put("")

    def kill(self, *, while_reserved: bool) -> None:
        """End it with SIGKILL; if `while_reserved`, once the reader has a line reserved."""
        with self._changed:
            self._hold = while_reserved
            if while_reserved:
                self._changed.wait_for(lambda: self._held or self.failure, HOLD_S)
            self._up = self._hold = self._held = False
            self._process.kill()
        self._process.wait()

    def hold(self) -> bool:
        """Whether the reader is to keep the line it reserved for the next kill; then waits for that."""
        with self._changed:
            if self._hold:
                life, self._held = self.life, True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self.life != life, STALL_S)
                return True
        return False

    def connect(self) -> tuple[int, Client]:
        """Wait until it is up; returns which life it is in, and a client connected to it."""
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
        """Raise ViolationError unless a connection made in that life was lost because of a kill."""
        with self._changed:
            if self._up and self.life == life:
                raise ViolationError("a connection was lost, and nobody had killed the server")

    def progress(self, *, set_to: int = 0, drained_to: int = 0) -> None:
        """Note how far the clients are."""
        with self._changed:
            self.lines_set = max(self.lines_set, set_to)
            self.lines_drained = max(self.lines_drained, drained_to)
            self._changed.notify_all()

    @property
    def _lines_done(self) -> int:
        return self.lines_set + self.lines_drained

    def wait_for_progress(self, lines: int) -> bool:
        """Wait until so many lines were set and drained together; returns False if that will not be."""
        with self._changed:
            while not self.failure and (done := self._lines_done) < lines:
                if not self._changed.wait_for(lambda: self.failure or self._lines_done > done, STALL_S):
                    self.failure = ViolationError(f"no progress in {STALL_S:.0f} s")
            return not self.failure

    def client_ended(self, future: "Future[Any]") -> None:
        """Note what made a client give up."""
        with self._changed:
            self.failure = self.failure or future.exception()
            self._changed.notify_all()


class Worker:
    """A client that connects again after each kill, and keeps the ledger of what that left open."""

    def __init__(self, server: Server) -> None:
        self._server = server
        # why each line may be seen again, and after which kill
        self.ledger: defaultdict[int, list[tuple[str, int]]] = defaultdict(list)
        self._life, self._client = server.connect()

    def request(self, call: Callable[[Client], Any]) -> tuple[Any, bool]:
        """Return the answer, and whether there was one or a kill came between."""
        try:
            return call(self._client), True
        except LOST:
            self._server.excuse(self._life)
            return None, False

    def reconnect(self, number: int = 0, why: str = "") -> None:
        """Go on after a kill, which left line `number` open."""
        if number:
            self.ledger[number].append((why, self._life))
        self._client.close()
        self._life, self._client = self._server.connect()


def produce(server: Server, lines: list[bytes]) -> Worker:
    """Set every line, again where the acknowledgement did not come."""
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
    """Reserve, note, close, until all is set and nothing more comes; returns what came, in order."""
    worker = Worker(server)
    seen: list[tuple[int, bytes]] = []
    while True:
        all_set = server.lines_set == total
        item, answered = worker.request(lambda client: client.get("work/open/t=200"))
        if not answered:
            worker.reconnect()  # what it may have reserved was not seen
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
    """Return the drained file without its repeats, a line about each repeat, and the violations."""
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
    """Send the lines through the server, killing it so often; returns what `check` does."""
    moments = sorted(chance.sample(range(1, 2 * len(lines)), kills))
    with ThreadPoolExecutor(2) as pool:
        producer, reader = pool.submit(produce, server, lines), pool.submit(drain, server, len(lines))
        for client in (producer, reader):
            client.add_done_callback(server.client_ended)
        for moment in moments:
            if not server.wait_for_progress(moment):
                break
            time.sleep(chance.uniform(0, SPREAD_S))  # to fall anywhere: nothing waits for this
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
    """Return the first of the common log files that can be read and has some lines."""
    for path in (Path("/var/log") / name for name in COMMON_LOGS):
        try:
            if path.read_bytes().count(b"\n") >= MIN_LINES:
                return path
        except OSError:
            continue
    raise click.UsageError("no log file with enough lines in /var/log: give one")


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False)
@click.option("--kills", default=20, show_default=True, type=click.IntRange(0), help="How often to kill.")
@click.option("--seed", default=None, type=int, help="Of the moments to kill at.  [default: random]")
@click.option("--data", type=click.Path(path_type=Path), help="Data directory.  [default: temporary]")
@click.option("--output", type=click.Path(path_type=Path), help="Where the drained file goes.")
def main(file: Path | None, kills: int, seed: int | None, data: Path | None, output: Path | None) -> None:
    """Run the proof and print what came of it."""
    file = file or common_log()
    content = file.read_bytes()  # at once: a log may grow meanwhile
    lines = io.BytesIO(content).readlines()
    if kills > len(lines):
        raise click.UsageError(f"{file} has {len(lines)} lines: too few for {kills} kills")
    seed = random.randrange(1 << 32) if seed is None else seed
    own = Path(tempfile.mkdtemp(prefix="darner-replay-"))
    output = output or own / "drained"
    started = time.monotonic()
    server = Server(data or own / "data")
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
    shutil.rmtree(own)


if __name__ == "__main__":
    main()
