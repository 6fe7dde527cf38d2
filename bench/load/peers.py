"""Queue servers that a user would pick instead of darner, which a bench starts itself.

Of each there is one node with data of its own in a new directory. It keeps items so that they outlive the
process, and has what belongs to that and no more: Redis has no snapshots beside its log, RabbitMQ no plugins.
Some are there twice: as they are, and so that they answer a put only once the item is on the disk.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import click
import psutil  # type: ignore[import-untyped,unused-ignore]

from load import sessions
from load.servers import TIMEOUT_S, Server, ServerError, free_port
from load.sessions import Amqp, Nats, Session, Sessions, redis_command
from single.own_server import OwnServer

START_S = 90.0
POLL_S = 0.02
# What a server had on disk of an operation when it answered: it was written later, or outlives the process,
# or the machine, too. `strace -f` says so: which calls came before the reply.
NOTHING, PAGES, FSYNC = "nothing yet", "page cache", "fsync"
ON_DISK = (NOTHING, PAGES, FSYNC)
# What NATS keeps pulls for: more than a bench has connections.
MAX_PULLS = 20_000
DRAINED_AT_ONCE = 500


@dataclass(frozen=True)
class Peer(Server):
    """A server that runs. Its processes are `pid` and `others`."""

    release: str = ""
    others: tuple[int, ...] = ()

    # in this order: of a put, a get, and the acknowledgement of a reliable get
    ON_DISK: ClassVar[tuple[str, str, str]]
    SESSIONS: ClassVar[Sessions]

    @contextlib.contextmanager
    def sessions(self, work: str, count: int, queue: str, item: bytes) -> Iterator[list[Session]]:
        """Yield so many new sessions that do this work: put, get or reliable."""
        kind: type[Session] = getattr(self.SESSIONS, work)
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(self.connect()) for _ in range(count)]
            yield [kind(connection, queue, item) for connection in connections]

    def make(self, queue: str, work: str) -> None:
        """Make a queue for this work, where it does not make itself."""

    def version(self) -> str:
        """Return the version that the server, or its program, reports."""
        return self.release

    def is_queue(self) -> bool:
        """Say that a get removes the item."""
        return True

    def cpu_s(self) -> float:
        """Return the CPU seconds that the processes have used, and children of theirs that have ended."""
        return float(sum(sum(one.cpu_times()[:4]) for one in self._processes()))

    def resident_bytes(self) -> int:
        """Return the resident memory of the processes."""
        return sum(int(one.memory_info().rss) for one in self._processes())

    def _processes(self) -> list[psutil.Process]:
        try:
            return [psutil.Process(pid) for pid in (self.pid, *self.others)]
        except psutil.Error as error:
            raise ServerError(f"{self.name}: {error}") from error


class Darner(Peer):
    """Darner, and the original, which speaks the same."""

    ON_DISK = PAGES, PAGES, PAGES
    SESSIONS = Sessions(sessions.MemcachePut, sessions.MemcacheGet, sessions.MemcacheReliable)

    def version(self) -> str:
        """Return the version that the server reports."""
        return Server.version(self)


class DarnerSync(Darner):
    """The same, with `sync = "always"`."""

    ON_DISK = FSYNC, PAGES, PAGES


class Beanstalkd(Peer):
    """Beanstalkd with a log. A job that is reserved is there until it is deleted: it has no other get."""

    ON_DISK = PAGES, PAGES, PAGES
    SESSIONS = Sessions(sessions.BeanstalkPut, None, sessions.BeanstalkReliable)

    def delete(self, *queues: str) -> None:
        """Reserve and delete all jobs that are ready: there is no command for that."""
        for queue in queues:
            with self.connect() as connection:
                self.ask(connection, b"watch %s\r\n" % queue.encode())
                self.ask(connection, b"ignore default\r\n")
                while ids := self._reserve(connection):
                    connection.sendall(b"".join(b"delete %s\r\n" % id for id in ids))
                    self._replies(connection, len(ids), rb"^DELETED\r\n")

    def _reserve(self, connection: socket.socket) -> list[bytes]:
        connection.sendall(b"reserve-with-timeout 0\r\n" * DRAINED_AT_ONCE)
        found = self._replies(
            connection, DRAINED_AT_ONCE, rb"^(?:RESERVED (\d+) \d+\r\n.*\r\n|TIMED_OUT\r\n)"
        )
        return [id for id in found if id]

    def _replies(self, connection: socket.socket, count: int, pattern: bytes) -> list[bytes]:
        """Return what the pattern finds in so many replies."""
        reply = b""
        while len(found := re.findall(pattern, reply, re.MULTILINE)) < count:
            if not (data := connection.recv(1 << 20)):
                raise ServerError(f"{self.name} closed the connection")
            reply += data
        return found


class BeanstalkdSync(Beanstalkd):
    """The same, with an fsync of each change."""

    ON_DISK = FSYNC, FSYNC, FSYNC


class Redis(Peer):
    """Lists of Redis with `appendfsync everysec`: a change is in the log, and within a second on the disk."""

    ON_DISK = PAGES, PAGES, PAGES
    SESSIONS = Sessions(sessions.RedisPut, sessions.RedisGet, sessions.RedisReliable)

    def delete(self, *queues: str) -> None:  # noqa: ARG002 - each connection has a list of its own, too
        """Delete all lists."""
        with self.connect() as connection:
            self.ask(connection, redis_command(b"FLUSHALL", b"SYNC"))


class RedisSync(Redis):
    """The same with `appendfsync always`."""

    ON_DISK = FSYNC, FSYNC, FSYNC


class NatsServer(Peer):
    """One node of NATS with JetStream. A queue is a stream of that name in files, and a consumer of it."""

    ON_DISK = PAGES, NOTHING, NOTHING
    SESSIONS = Sessions(sessions.NatsPut, sessions.NatsGet, sessions.NatsReliable)

    def make(self, queue: str, work: str) -> None:
        """Make the stream, a work queue if gets are acknowledged, which it wants, and its consumer."""
        plain = work == "get"
        stream: dict[str, Any] = {"name": queue, "subjects": [queue], "storage": "file", "num_replicas": 1}
        stream["retention"] = "interest" if plain else "workqueue"
        consumer: dict[str, Any] = {"durable_name": queue, "ack_policy": "none" if plain else "explicit"}
        consumer["max_waiting"] = MAX_PULLS
        if not plain:
            consumer["max_ack_pending"] = MAX_PULLS
        self._api(f"STREAM.CREATE.{queue}", stream)
        self._api(f"CONSUMER.DURABLE.CREATE.{queue}.{queue}", {"stream_name": queue, "config": consumer})

    def delete(self, *queues: str) -> None:
        """Delete the streams with their consumers."""
        for queue in queues:
            self._api(f"STREAM.DELETE.{queue}", {}, missing_is_fine=True)

    def _api(self, subject: str, request: dict[str, Any], *, missing_is_fine: bool = False) -> None:
        """Make a request of JetStream's; ServerError if it says no."""
        payload = json.dumps(request).encode()
        with self.connect() as connection:
            session = Session(connection, "", b"")
            inbox = Nats.hello(session)
            message = b"PUB $JS.API.%s %s %d\r\n%s\r\n" % (subject.encode(), inbox, len(payload), payload)
            reply = session.ask(message, b"}\r\n")
        if b'"error":' in reply and not (missing_is_fine and b"not found" in reply):
            raise ServerError(f"{self.name}: {reply!r}")


class NatsSync(NatsServer):
    """The same with `sync_interval: always`."""

    ON_DISK = FSYNC, NOTHING, NOTHING


class RabbitMQ(Peer):
    """RabbitMQ with durable classic queues, persistent messages and publisher confirms."""

    ON_DISK = FSYNC, NOTHING, NOTHING
    SESSIONS = Sessions(sessions.AmqpPut, sessions.AmqpGet, sessions.AmqpReliable)

    def make(self, queue: str, work: str) -> None:  # noqa: ARG002 - it is the same for each
        """Declare the queue."""
        with self._session(queue) as session:
            session.declare()

    def delete(self, *queues: str) -> None:
        """Delete the queues."""
        for queue in queues:
            with self._session(queue) as session:
                session.delete()

    def version(self) -> str:
        """Return the version in the greeting."""
        with self._session("") as session:
            found = re.search(rb"\x07versionS.{4}([\d.]+)", session.greeting, re.DOTALL)
        return found[1].decode() if found else ""

    @contextlib.contextmanager
    def _session(self, queue: str) -> Iterator[Amqp]:
        with self.connect() as connection:
            yield Amqp(connection, queue, b"")


@dataclass(frozen=True)
class Place:
    """Where a server runs: a directory and port of its own, and the core that it stays on, if any."""

    directory: Path
    port: int
    core: int | None

    @property
    def output(self) -> Path:
        """What the server prints: not among its data, for the original takes each file there as a queue."""
        return self.directory.with_suffix(".output")


@dataclass(frozen=True)
class Kind:
    """How a server is started: its program, if that is installed, and what starts it."""

    peer: type[Peer]
    program: str | None
    run: Callable[["Kind", str, Place], contextlib.AbstractContextManager[Peer]]
    mode: str = ""


@contextlib.contextmanager
def _on_core(core: int | None) -> Iterator[None]:
    """Have what is started meanwhile run on this core."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _process(place: Place, *command: str | Path, env: dict[str, str] | None = None) -> Iterator[int]:
    """Start a process, and yield its pid; then end it and all that it started."""
    place.directory.mkdir(parents=True, exist_ok=True)
    with place.output.open("ab") as output, _on_core(place.core):
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, cwd=place.directory
        )
    try:
        yield process.pid
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        process.kill()
        process.wait()


def _wait(place: Place, pid: int, what: str, answers: Callable[[], object]) -> None:
    """Wait until a server answers; ClickException if it ends, or does not within START_S."""
    deadline = time.monotonic() + START_S
    while True:
        with contextlib.suppress(OSError, ServerError):
            answers()
            return
        if time.monotonic() > deadline or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            output = place.output.read_text(errors="replace")
            raise click.ClickException(f"{what} does not start:\n{output[-2000:]}")
        time.sleep(POLL_S)


def _listens(place: Place) -> None:
    socket.create_connection(("127.0.0.1", place.port), TIMEOUT_S).close()


@contextlib.contextmanager
def _darner(kind: Kind, name: str, place: Place) -> Iterator[Peer]:
    one = OwnServer(place.directory, kind.mode, port=place.port)
    with _on_core(place.core):
        server = one.start()
    try:
        yield kind.peer(name, server.host, server.port, server.pid)
    finally:
        one.discard()


@contextlib.contextmanager
def _plain(kind: Kind, name: str, place: Place) -> Iterator[Peer]:
    """Start a program that wants no more than some arguments."""
    assert kind.program
    arguments = shlex.split(kind.mode.format(port=place.port, directory=place.directory))
    with _process(place, kind.program, *arguments) as pid:
        _wait(place, pid, name, lambda: _listens(place))
        release = "" if issubclass(kind.peer, Darner) else _release(kind.program)
        yield kind.peer(name, "127.0.0.1", place.port, pid, release)


@contextlib.contextmanager
def _nats(kind: Kind, name: str, place: Place) -> Iterator[Peer]:
    assert kind.program
    place.directory.mkdir(parents=True, exist_ok=True)
    configuration = place.directory / "nats.conf"
    store = json.dumps(str(place.directory / "store"))
    configuration.write_text(
        f"listen: 127.0.0.1:{place.port}\njetstream {{ store_dir: {store}, max_file: 20G, {kind.mode} }}\n"
    )
    with _process(place, kind.program, "--config", configuration) as pid:
        _wait(place, pid, name, lambda: _listens(place))
        yield kind.peer(name, "127.0.0.1", place.port, pid, _release(kind.program))


@contextlib.contextmanager
def _rabbitmq(kind: Kind, name: str, place: Place) -> Iterator[Peer]:
    """Start RabbitMQ with an epmd of its own, which Erlang's nodes want, and nothing of the system's."""
    assert kind.program
    epmd = shutil.which("epmd")
    assert epmd
    place.directory.mkdir(parents=True, exist_ok=True)
    files = {"config": "loopback_users = none\n", "plugins": "[].\n"}
    for file, text in files.items():
        (place.directory / file).write_text(text)
    epmd_port = free_port()
    env = os.environ | {
        "HOME": str(place.directory),
        "ERL_EPMD_PORT": str(epmd_port),
        "RABBITMQ_NODENAME": f"bench{place.port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(place.port),
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_CONFIG_FILE": str(place.directory / "config"),
        "RABBITMQ_CONF_ENV_FILE": str(place.directory / "no-such-file"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(place.directory / "plugins"),
        "RABBITMQ_MNESIA_BASE": str(place.directory / "mnesia"),
        "RABBITMQ_LOG_BASE": str(place.directory / "logs"),
    }
    with (
        _process(place, epmd, "-port", str(epmd_port), "-address", "127.0.0.1") as epmd_pid,
        _process(place, kind.program, env=env) as pid,
    ):
        peer = kind.peer(name, "127.0.0.1", place.port, pid)
        _wait(place, pid, name, peer.version)
        children = [child.pid for child in psutil.Process(pid).children(recursive=True)]
        yield kind.peer(name, peer.host, peer.port, pid, peer.version(), (epmd_pid, *children))


def _release(program: str) -> str:
    """Return the version that a program reports."""
    flag = "-v" if Path(program).name == "beanstalkd" else "--version"
    said = subprocess.run([program, flag], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v?=?v?(\d+(?:\.\d+)+)", said)
    return found[1] if found else said.strip()


def _which(program: str) -> str | None:
    """Return the path of a program; some are beside the Python that runs."""
    return shutil.which(program, path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))


BEANSTALKD = "-l 127.0.0.1 -p {port} -b {directory} "
REDIS = "--port {port} --bind 127.0.0.1 --dir {directory} --save '' --appendonly yes --appendfsync "
# Debian's command changes the user, for which it has to be root's.
RABBITMQ_SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"

KINDS = {
    "darner": Kind(Darner, sys.executable, _darner),
    "darner-sync": Kind(DarnerSync, sys.executable, _darner, '[queue_defaults]\nsync = "always"\n'),
    "original": Kind(Darner, None, _plain, "-p {port} -d {directory}"),
    "beanstalkd": Kind(Beanstalkd, _which("beanstalkd"), _plain, BEANSTALKD),
    "beanstalkd-sync": Kind(BeanstalkdSync, _which("beanstalkd"), _plain, BEANSTALKD + "-f0"),
    "redis": Kind(Redis, _which("redis-server"), _plain, REDIS + "everysec"),
    "redis-sync": Kind(RedisSync, _which("redis-server"), _plain, REDIS + "always"),
    "nats": Kind(NatsServer, _which("nats-server"), _nats),
    "nats-sync": Kind(NatsSync, _which("nats-server"), _nats, "sync_interval: always"),
    "rabbitmq": Kind(RabbitMQ, _which(RABBITMQ_SERVER), _rabbitmq),
}


def available(names: Sequence[str], original: Path | None = None) -> dict[str, Kind]:
    """Return those of these servers that can run here, and say which cannot; `original` is that program."""
    found = {name: KINDS[name] for name in names}
    if "original" in found:
        found["original"] = replace(found["original"], program=str(original) if original else None)
    if missing := [name for name, kind in found.items() if kind.program is None]:
        click.echo(f"not installed, and left out: {', '.join(missing)}", err=True)
    return {name: kind for name, kind in found.items() if kind.program}


@contextlib.contextmanager
def running(kinds: dict[str, Kind], data_in: Path | None, core: int | None) -> Iterator[tuple[Peer, ...]]:
    """Start servers with data of their own in new directories inside this one; end them and delete those."""
    with (
        tempfile.TemporaryDirectory(prefix="darner-bench-", dir=data_in) as own,
        contextlib.ExitStack() as stack,
    ):
        yield tuple(
            stack.enter_context(kind.run(kind, name, Place(Path(own) / name, free_port(), core)))
            for name, kind in kinds.items()
        )
