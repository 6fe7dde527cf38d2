"""The bench beside other queue servers: that its sessions speak each server's protocol; and its report."""

import json
import re
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import peers as bench
from load import peers, sessions
from load.servers import ServerError

BENCH = Path(__file__).parents[2] / "bench" / "peers.py"
ITEM = b"abcdefghij" * 10
ITEMS, CONNECTIONS = 250, 3
NAMES = [name for name in peers.KINDS if name != "original"]


@pytest.fixture(params=NAMES)
def peer(request, tmp_path):
    """A server of each kind that is installed."""
    if not (kinds := peers.available([request.param])):
        pytest.skip(f"{request.param} is not installed")
    with peers.running(kinds, tmp_path, None) as (one,):
        yield one


def fill(peer: peers.Peer, queue: str) -> None:
    with peer.sessions("put", 2, queue, ITEM) as several:
        assert sessions.fill(several, ITEMS, 60) == ITEMS


def unacknowledged(peer: peers.Peer, queue: str) -> int:
    """Return how many items of an empty queue were got, and not acknowledged, as the server sees it."""
    name = queue.encode()
    with peer.connect() as connection:
        if isinstance(peer, peers.Darner):
            stats = peer.ask(connection, b"stats\r\n", b"END\r\n")
            found = re.search(rb"STAT queue_%s_items (\d+)" % name, stats)
        elif isinstance(peer, peers.Beanstalkd):
            stats = peer.ask(connection, b"stats-tube %s\r\n" % name, b"\n\r\n")
            counts = re.findall(rb"current-jobs-(?:ready|reserved): (\d+)", stats)
            return sum(map(int, counts))
        elif isinstance(peer, peers.Redis):
            reply = peer.ask(connection, sessions.redis_command(b"DBSIZE"))
            found = re.search(rb":(\d+)", reply)
        elif isinstance(peer, peers.NatsServer):
            session = sessions.Session(connection, queue, b"")
            inbox = sessions.Nats.hello(session)
            info = b"PUB $JS.API.CONSUMER.INFO.%s.%s %s 0\r\n\r\n" % (name, name, inbox)
            found = re.search(rb'"num_ack_pending":(\d+)', session.ask(info, b"}\r\n"))
        else:
            amqp = sessions.Amqp(connection, queue, b"")
            arguments = b"\0\0" + sessions.short_text(name) + b"\x02" + sessions.long_text(b"")
            reply = amqp.ask(sessions.amqp_method(1, sessions.DECLARE, arguments), sessions.FRAME_END)
            return int(struct.unpack_from(">I", reply, 12 + len(name))[0])
    assert found
    return int(found[1])


def test_each_item_is_got_and_acknowledged_once(peer):
    assert re.match(r"\d+\.\d", peer.version())
    assert peer.resident_bytes() > 1e6
    assert peer.cpu_s() >= 0
    for work in ("get", "reliable"):
        if not bench.has(peer, work):
            continue
        peer.make("work", work)
        fill(peer, "work")
        with peer.sessions(work, CONNECTIONS, "work", ITEM) as several:
            result = sessions.drive(peer, several, ITEMS, 60)
        assert (result.requests, result.first_error) == (ITEMS, "")
        if work == "reliable":
            # the last of each connection
            deadline = time.monotonic() + 20
            while (left := unacknowledged(peer, "work")) != CONNECTIONS and time.monotonic() < deadline:
                time.sleep(0.05)
            assert left == CONNECTIONS
        peer.delete("work")


@pytest.mark.parametrize(
    ("kind", "reply"),
    [
        (sessions.MemcachePut, b"STORED\r\nSERVER_ERROR\r\n"),
        (sessions.MemcacheGet, b"END\r\n"),
        (sessions.RedisPut, b"-OOM\r\n"),
        (sessions.RedisGet, b"$-1\r\n"),
        (sessions.RedisReliable, b"$-1\r\n"),
    ],
)
def test_a_reply_that_is_no_success_is_an_error(kind, reply):
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.create_server(("127.0.0.1", 0)) as listening:
        connection = socket.create_connection(listening.getsockname())
        with connection, pytest.raises(ServerError, match=kind.__name__):
            kind(connection, "work", ITEM).feed(reply)


def test_the_bench_reports_and_draws_what_each_had_on_disk(tmp_path):
    file, png = tmp_path / "peers.json", tmp_path / "peers.png"
    few = ["--rounds", "1", "-n", "50", "-c", "1,5", "--sizes", "64", "--waiting", "100"]
    options = [*few, "--servers", "darner,darner-sync,original", "--data-in", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(BENCH), *options, "--json", str(file), "--plot", str(png)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "not installed, and left out: original" in done.stderr
    assert "on disk when answered" in done.stdout
    found = json.loads(file.read_text())
    on_disk = {(one["server"], one["cell"]["work"]): one["remark"] for one in found["medians"]}
    assert on_disk["darner", "put"] == "page cache"
    assert on_disk["darner-sync", "put"] == "fsync"
    assert all(one["errors"] == [] for one in found["medians"])
    rates = [one["figures"].get("rps", 0) > 0 for one in found["medians"] if one["cell"]["work"] != "waiting"]
    assert rates == [True] * 2 * 3 * 2
    memory = [one["figures"]["memory_mb"] for one in found["medians"] if "memory_mb" in one["figures"]]
    assert len(memory) == 1
    assert png.read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("darner-bench-*"))


def test_the_bench_says_who_is_ahead_of_darner_with_no_less_on_disk():
    def one(server: str, rps: float, remark: str) -> bench.Median:
        cell = {"work": "put", "connections": 1, "size": 64}
        return bench.Median(cell, server, {"rps": rps}, {}, {}, {}, 1, 0, [], remark)

    rows = [
        one("darner", 10, "page cache"),
        one("darner-sync", 5, "fsync"),
        one("redis", 20, "page cache"),
        one("rabbitmq", 4, "fsync"),
        one("nats", 30, "nothing yet"),
    ]
    assert bench.places(rows) == [
        "in 2 rows of darner's, ahead and with no less on disk: 1",
        "redis is 2.00 times darner: work=put connections=1 size=64",
    ]


def test_only_servers_that_are_known_are_measured():
    result = CliRunner().invoke(bench.main, ["--servers", "darner,kafka"])
    assert result.exit_code == 2
    assert "kafka" in result.output
