"""Metrics for Prometheus: the figures, and scrapes that hold up no client."""

import asyncio
import contextlib
import re
import resource
import select
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path
from unittest.mock import Mock

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as strictly
from prometheus_client.parser import text_string_to_metric_families as leniently
from running import Server, refused, running, running_well, until

from darner._version import __version__
from darner.access.descriptors import METRICS_CONNECTIONS
from darner.environment.environment import Environment
from darner.queues.broker import Broker
from darner.queues.queue import DEFAULTS
from darner.queues.totals import Totals
from darner.server import metrics, metrics_http
from darner.wire.clients import Clients
from darner.wire.commands.table import COMMANDS
from darner.wire.figure import Figure
from darner.wire.figures import LEVELDB_FIGURES, QUEUE_FIGURES, SERVER_FIGURES

# Figures that change with each request, are no numbers or take long.
PASSING = {"uptime", "time", "conn_yields"}
NO_METRICS = {"pid", "version", "status", "logsize"}


def fetch(port: int, accept: str = "text/plain", host: str = "127.0.0.1") -> str:
    request = urllib.request.Request(f"http://{host}:{port}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=20) as response:
        assert response.status == 200
        return response.read().decode()


def metrics_port(server: Server) -> int:
    return int(re.search(r'event="serving metrics" host=\S+ port=(\d+)', server.log)[1])


def samples(server: Server) -> dict[tuple[str, str], float]:
    """Return the value of each sample, by name and queue."""
    families = leniently(fetch(metrics_port(server)))
    return {(s.name, s.labels.get("queue", "")): s.value for family in families for s in family.samples}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "darner.toml"
    path.write_text("metrics_port = 0\n")
    return str(path)


@pytest.fixture(scope="module")
def server(tmp_path_factory, config):
    with running_well(tmp_path_factory.mktemp("metrics") / "data", "--config", config) as server:
        yield server


class TestFigures:
    def test_of_the_server_are_those_of_stats(self, server):
        with contextlib.closing(server.connect()) as wire:
            for _ in range(5):
                wire.set(b"work", b"x" * 10)
            for key in (b"work", b"none", b"work/peek"):
                wire.get(key)
            wire.send(b"set bad/name 0 0 1 noreply\r\nx\r\n")
            wire.set(b"gone", b"x")
            wire.ask(b"delete gone\r\n")
            # the bytes of this request are counted before the reply, those of the reply are not
            stats = wire.stats()
            found = samples(server)
            for figure in SERVER_FIGURES:
                if figure.name in NO_METRICS:
                    assert not figure.metric
                elif figure.name in PASSING:
                    assert abs(found[figure.metric, ""] - int(stats[figure.name])) <= 5
                elif figure.name != "bytes_written":
                    assert found[figure.metric, ""] == int(stats[figure.name]), figure.name
            assert found["darner_written_bytes_total", ""] > int(stats["bytes_written"]) > 0
            assert found["darner_noreply_errors_total", ""] == 1
            assert found["darner_queues_deleted_total", ""] == 1

    def test_of_each_queue_are_those_of_stats(self, server):
        with contextlib.closing(server.connect()) as wire:
            for queue in (b"some", b"more"):
                for _ in range(3):
                    wire.set(queue, b"x" * 100)
                wire.get(queue + b"/open")
                wire.get(queue + b"/abort")
                wire.get(queue)
            wire.get(b"more/open")
            stats = wire.stats()
            found = samples(server)
        for queue in ("some", "more"):
            for figure in QUEUE_FIGURES:
                if figure.name in NO_METRICS:
                    assert not figure.metric
                elif figure.name == "head_age":  # it grows with time
                    assert found[figure.metric, queue] == pytest.approx(
                        int(stats[f"queue_{queue}_head_age"]) * figure.scale, abs=10
                    )
                else:
                    in_stats = int(stats[f"queue_{queue}_{figure.name}"])
                    assert found[figure.metric, queue] == pytest.approx(in_stats * figure.scale), figure.name
        assert found["darner_queue_open_transactions", "more"] == 1
        assert found["darner_queue_memory_bytes", "some"] == 200
        assert found["darner_queue_create_time_seconds", "some"] == pytest.approx(
            found["darner_time_seconds", ""], abs=60
        )

    def test_of_each_cursor_is_how_much_it_has_to_read(self, server):
        with contextlib.closing(server.connect()) as wire:
            for _ in range(3):
                wire.set(b"read", b"x")
            wire.get(b"read/cursor=billing")
        lags = re.findall(
            r"^darner_queue_cursor_lag_items\{(.+)\} (.+)$", fetch(metrics_port(server)), re.MULTILINE
        )
        assert [(set(labels.split(",")), lag) for labels, lag in lags] == [
            ({'queue="read"', 'cursor="billing"'}, "2.0")
        ]

    def test_names_keep_to_the_rules_and_each_is_explained(self, server):
        with contextlib.closing(server.connect()) as wire:
            wire.set(b"rules", b"x")
        text = fetch(metrics_port(server), "application/openmetrics-text; version=1.0.0")
        families = {family.name: family for family in strictly(text)}
        figures = [figure for figure in (*SERVER_FIGURES, *QUEUE_FIGURES) if figure.metric]
        assert len({figure.metric for figure in figures}) == len(figures)
        for figure in figures:
            family = families[figure.metric.removesuffix("_total")]
            assert family.documentation == figure.help.rstrip()
            assert family.documentation.endswith(".")
            assert family.type == ("counter" if figure.metric.endswith("_total") else "gauge")
        assert families["darner"].samples[0].labels == {
            "version": __version__,
            "pid": str(server.process.pid),
        }
        assert families["process_open_fds"].samples[0].value > 0

    def test_every_name_a_queue_can_have_is_told(self, server):
        with contextlib.closing(server.connect()) as wire:
            for name in (b'"quoted"', b"back\\slash", "ä".encode(), b"\xfe", b"\xff"):
                assert wire.set(name, b"x") == b"STORED\r\n"
        queues = {queue for _, queue in samples(server)}
        assert queues >= {'"quoted"', "back\\slash", "%C3%A4", "%FE", "%FF"}

    def test_no_two_names_have_one_label(self, server):
        alike = (b"n\xff", b"n\\xff", b"n%FF", b"n%ff", b"n%25FF", b"n\xc2\x9b", b"n\x9b", "n\ufffd".encode())
        with contextlib.closing(server.connect()) as wire:
            for size, name in enumerate(alike, 1):
                assert wire.set(name, b"x" * size) == b"STORED\r\n"
                assert wire.get(b"n\xff/cursor=" + name) == b"x"
        text = fetch(metrics_port(server))
        series = re.findall(r'^darner_queue_item_bytes\{queue="(n.+)"\} (\S+)$', text, re.MULTILINE)
        assert sorted(float(size) for _, size in series) == list(range(1, len(alike) + 1))
        assert len({label for label, _ in series}) == len(alike)
        cursors = re.findall(r'^darner_queue_cursor_lag_items\{.*cursor="(n[^"]+)".*\} ', text, re.MULTILINE)
        assert len(cursors) == len(set(cursors)) == len(alike)
        assert text.isascii()

    def test_of_a_queue_that_is_gone_are_gone(self, server):
        with contextlib.closing(server.connect()) as wire:
            wire.set(b"gone", b"x")
            assert samples(server)["darner_queue_items", "gone"] == 1
            wire.ask(b"delete gone\r\n")
            assert ("darner_queue_items", "gone") not in samples(server)


class TestDisturbance:
    def test_clients_are_served_while_somebody_does_not_read_the_metrics(self, server):
        port = metrics_port(server)
        with contextlib.ExitStack() as stack:
            for said in (b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\n\r\n"):
                deaf = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                deaf.sendall(said)
            wire = stack.enter_context(contextlib.closing(server.connect()))
            assert wire.set(b"deaf", b"x") == b"STORED\r\n"
            assert samples(server)["darner_queue_items", "deaf"] == 1

    def test_queues_that_come_and_go_meanwhile_do_no_harm(self, server):
        over = threading.Event()

        def come_and_go() -> None:
            with contextlib.closing(server.connect()) as wire:
                while not over.is_set():
                    for n in range(5):
                        wire.set(b"short-lived-%d" % n, b"x")
                    for n in range(5):
                        wire.ask(b"delete short-lived-%d\r\n" % n)

        thread = threading.Thread(target=come_and_go)
        thread.start()
        try:
            for _ in range(10):
                assert samples(server)["darner_connections", ""] >= 1
        finally:
            over.set()
            thread.join()

    def scrape(self, tmp_path, queues: int) -> list[int]:
        """Scrape so many queues; return the turn of the loop in which each one was read."""
        turn_of_each = []
        figure = Figure("", lambda _: turn_of_each.append(turns) or 0, "darner_queue_figure", "A figure.")
        figures = LEVELDB_FIGURES._replace(queue=(figure,))
        turns = 0

        async def read() -> str:
            loop = asyncio.get_running_loop()

            def count() -> None:
                nonlocal turns
                turns += 1
                loop.call_soon(count)

            broker = Broker(tmp_path / "data", Environment(lambda: 1, lambda work, done: None))
            broker.open()
            broker.totals = Totals({})
            broker.queues |= {
                b"queue-%d" % n: Mock(journal=Mock(cursors={}), settings=DEFAULTS) for n in range(queues)
            }
            count()
            served = metrics.Metrics(
                Clients(loop, broker, COMMANDS, figures=figures, dialect="memcached", keepalive=60),
                "127.0.0.1",
                0,
            )
            text = await asyncio.to_thread(fetch, served.port)
            await asyncio.to_thread(served.close)
            return text

        assert asyncio.run(read()).count("darner_queue_figure{") == queues
        return turn_of_each

    def test_of_many_queues_the_loop_reads_some_a_turn_and_the_text_is_made_with_pauses(
        self, tmp_path, monkeypatch
    ):
        pauses = []
        monkeypatch.setattr(metrics.time, "sleep", pauses.append)
        turns = self.scrape(tmp_path, 1000)
        assert max(Counter(turns).values()) <= metrics.QUEUES_PER_TURN
        assert len(pauses) >= 1000 // metrics.SAMPLES_PER_PAUSE

    def test_a_turn_that_takes_long_ends_before_so_many_queues_are_read(self, tmp_path, monkeypatch):
        monkeypatch.setattr(metrics, "TURN_S", -1)
        assert len(set(self.scrape(tmp_path, 5))) == 5


class TestStart:
    def refused(self, data, config: str, **environment: str) -> str:
        said = refused("--port", "0", "--data", data, "--config", config, **environment)
        assert not data.exists()
        return said

    def test_without_prometheus_client_says_what_to_install(self, tmp_path, config):
        missing = 'raise ModuleNotFoundError("not here", name="prometheus_client")\n'
        (tmp_path / "prometheus_client.py").write_text(missing)
        said = self.refused(tmp_path / "data", config, PYTHONPATH=str(tmp_path))
        assert "pip install darner[metrics]" in said

    def test_with_the_port_in_use_is_one_line_that_names_it(self, tmp_path, server):
        config = tmp_path / "darner.toml"
        config.write_text(f"metrics_port = {metrics_port(server)}\n")
        said = self.refused(tmp_path / "data", str(config))
        assert f"127.0.0.1:{metrics_port(server)}" in said
        assert "metrics_port" in said

    def test_host_is_where_they_are_had(self, tmp_path):
        config = tmp_path / "darner.toml"
        config.write_text('metrics_port = 0\nmetrics_host = "127.0.0.4"\n')
        with running(tmp_path / "data", "--config", str(config)) as server:
            assert "darner_items 0.0" in fetch(metrics_port(server), host="127.0.0.4")
            with pytest.raises(OSError, match="refused"):
                fetch(metrics_port(server))
            assert server.stop() == 0
        assert "Traceback" not in server.log

    def test_a_server_without_them_has_no_part_of_prometheus_client(self):
        script = "import sys, darner.cli.main; sys.exit('prometheus_client' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


class TestSilence:
    """Open connections to the port that send nothing."""

    def connections(self, server: Server, count: int) -> list[socket.socket]:
        port = metrics_port(server)
        return [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(count)]

    def threads(self, server: Server) -> int:
        return len(list(Path(f"/proc/{server.process.pid}/task").iterdir()))

    def test_takes_bounded_threads_and_descriptors_and_keeps_no_scrape_out(self, server):
        threads = self.threads(server)
        silent = self.connections(server, 200)
        for sock in silent[::2]:
            with contextlib.suppress(OSError):
                sock.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")
        assert "darner_items" in fetch(metrics_port(server))
        assert self.threads(server) <= threads + 2 * METRICS_CONNECTIONS
        # most of them are closed by now
        until(lambda: self.threads(server) <= threads + METRICS_CONNECTIONS)
        for sock in silent:
            sock.close()

    def test_ends_in_some_seconds_however_slowly_is_asked(self, server):
        (sock,) = self.connections(server, 1)
        start = time.monotonic()
        sock.settimeout(0.2)
        with contextlib.suppress(ConnectionError):
            while True:
                sock.send(b"G")
                with contextlib.suppress(TimeoutError):
                    if not sock.recv(1):
                        break
        assert metrics_http.REQUEST_S - 1 < time.monotonic() - start < metrics_http.REQUEST_S + 3
        sock.close()

    def test_is_no_right_to_more_connections_once_something_was_asked_for(self, monkeypatch):
        monkeypatch.setattr(metrics_http.ThreadingMixIn, "process_request", Mock())
        pairs = [socket.socketpair() for _ in range(METRICS_CONNECTIONS + 1)]
        http = metrics_http.HttpServer("127.0.0.1", 0)
        for ours, _ in pairs:
            http.process_request(ours, None)
            http.note_request(ours)
        assert [ours.fileno() < 0 for ours, _ in pairs] == [False] * METRICS_CONNECTIONS + [True]
        http.server_close()
        for sock in sum(pairs, ()):
            sock.close()

    def test_of_who_cannot_be_accepted_costs_no_processor_time(self, server):
        limits = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        # fewer than the server has open
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (5, limits[1]))
        (waiting,) = self.connections(server, 1)
        before = server.processor_s
        assert not select.select([waiting], [], [], 1.5)[0]
        assert server.processor_s - before < 0.3
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limits)
        waiting.send(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert waiting.recv(15) == b"HTTP/1.0 200 OK"
        waiting.close()
