"""Probes over HTTP: whether the server lives, whether it takes sets; and the rest of what HTTP asks."""

import asyncio
import contextlib
import http.client
import re
import signal
import socket
import threading
import time
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from running import Server, configured, until

from darner.errors import JournalError
from darner.queues.broker import Broker
from darner.server import metrics, metrics_http, probes
from darner.server.pages import Pages, plain
from darner.server.probes import Probes


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, str, dict[str, str]]:
    """Return the status, the body and the headers of the answer."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), {k.lower(): v for k, v in answer.getheaders()}


def metrics_port(server: Server) -> int:
    return int(re.search(r'event="serving metrics" host=\S+ port=(\d+)', server.log)[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with configured(tmp_path_factory.mktemp("probes"), "metrics_port = 0\n") as server:
        yield server
        assert server.stop() == 0
    assert "Traceback" not in server.log


@pytest.fixture(scope="module")
def port(server) -> int:
    return metrics_port(server)


class TestHealthz:
    def test_is_ok_as_long_as_the_loop_answers_and_503_when_it_does_not(self, server, port):
        assert ask(port, "/healthz")[:2] == (200, "ok\n")
        assert ask(port, "/healthz")[2]["cache-control"] == "no-store"

    def test_of_a_loop_that_hangs_says_so(self, monkeypatch):
        monkeypatch.setattr(probes, "LOOP_S", 0.01)
        loop = asyncio.new_event_loop()  # it does not run
        page = Probes(Mock(loop=loop)).healthz({})
        loop.close()
        assert page.status == "503 Service Unavailable"
        assert page.body == b"the event loop has not answered for 0.01 s\n"


class TestReadyz:
    def test_is_ok_while_sets_are_taken_and_says_what_status_refuses_them(self, server, port):
        assert ask(port, "/readyz")[:2] == (200, "ok\n")
        with contextlib.closing(server.connect()) as wire:
            for status in ("readonly", "quiescent"):
                assert wire.ask(b"status %s\r\n" % status.encode()) == b"END\r\n"
                assert ask(port, "/readyz")[:2] == (503, f"the status is {status}\n")
                assert ask(port, "/healthz")[0] == 200
            wire.ask(b"status up\r\n")
        assert ask(port, "/readyz")[0] == 200

    def wrong(self, **parts: object) -> list[str]:
        broker = SimpleNamespace(
            status=SimpleNamespace(level=0, name="up"),
            space=SimpleNamespace(refusal=None),
            storage=SimpleNamespace(log=SimpleNamespace(segment=SimpleNamespace(refusal=None))),
        )
        for name, value in parts.items():
            setattr(broker, name, value)
        return Broker.refusals.fget(broker)

    def test_names_each_reason(self):
        full = SimpleNamespace(refusal=JournalError("refused: the disk is full"))
        refusing = SimpleNamespace(
            log=SimpleNamespace(segment=SimpleNamespace(refusal=JournalError("cannot sync /private/path")))
        )
        readonly = SimpleNamespace(level=1, name="readonly")
        assert self.wrong() == []
        assert self.wrong(space=full, status=readonly) == [
            "the status is readonly", "sets are refused: the disk is full",
        ]  # fmt: skip
        assert self.wrong(storage=refusing) == [
            "the write-ahead log takes nothing in: the server's log says why"
        ]
        # one cause, one reason
        assert self.wrong(space=full, storage=refusing) == ["sets are refused: the disk is full"]

    def test_of_a_full_disk_is_503_and_gets_go_on(self, tmp_path):
        with configured(tmp_path, 'metrics_port = 0\nmin_free_space = "900 TB"\n') as server:
            port = metrics_port(server)
            until(lambda: ask(port, "/readyz")[0] == 503)
            assert (
                ask(port, "/readyz")[1] == "sets are refused: less is free on the disk than min_free_space\n"
            )
            assert ask(port, "/healthz")[0] == 200

    def test_a_server_that_closes_is_not_ready_while_clients_end(self, tmp_path):
        with configured(tmp_path, "metrics_port = 0\n") as server:
            port = metrics_port(server)
            with contextlib.closing(server.connect()) as wire:
                wire.send(b"set slow 0 0 5\r\nhe")  # the server waits for the rest
                assert wire.silent()
                server.process.send_signal(signal.SIGTERM)
                server.wait_for_log("event=closing")
                assert ask(port, "/readyz")[:2] == (503, "the server is closing\n")
                assert ask(port, "/healthz")[0] == 200
                wire.send(b"llo\r\n")
                assert wire.line() == b"STORED\r\n"
            assert server.process.wait(20) == 0


class TestHttp:
    @pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
    def test_head_has_the_headers_of_get_and_no_body(self, port, path):
        status, body, headers = ask(port, path, "HEAD")
        assert (status, body) == (200, "")
        got = ask(port, path)
        assert headers["content-type"] == got[2]["content-type"]
        assert int(headers["content-length"]) > 0
        assert int(got[2]["content-length"]) == len(got[1])

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"])
    def test_another_method_is_405_and_says_which_are_allowed(self, port, method):
        status, _, headers = ask(port, "/metrics", method)
        assert (status, headers["allow"]) == (405, "GET, HEAD")

    @pytest.mark.parametrize("path", ["/", "/metrics/", "/favicon.ico", "/%2e%2e/etc/passwd"])
    def test_another_path_is_404_and_says_which_there_are(self, port, path):
        assert ask(port, path)[:2] == (404, "there is only /metrics /healthz /readyz\n")

    def test_a_query_is_no_other_path(self, port):
        assert ask(port, "/healthz?verbose=1")[0] == 200
        assert "darner_items " in ask(port, "/metrics?name[]=darner_items")[1]

    @pytest.mark.parametrize(
        ("sent", "status"),
        [
            (b"\r\n\r\n", b""),
            (b"GET\r\n\r\n", b"400"),
            (b"GET /metrics HTTP/9.9\r\n\r\n", b"505"),
            (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", b"431"),
            (b"GET /metrics HTTP/1.1\r\n" + b"X: x\r\n" * 200 + b"\r\n", b"431"),
            (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
            (b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=x\r\n\r\n", b"500"),
            (b"\x16\x03\x01\x02\x00" * 100 + b"\r\n\r\n", b"400"),
        ],
    )
    def test_what_is_no_request_gets_an_error_and_nothing_into_the_log(self, server, port, sent, status):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
            with contextlib.suppress(ConnectionError):  # it need not read all
                sock.sendall(sent)
            said = b""
            with contextlib.suppress(ConnectionError):
                while data := sock.recv(65536):
                    said += data
        assert status in said.partition(b"\r\n")[0] or not said
        assert ask(port, "/healthz")[0] == 200

    def test_a_page_that_fails_is_500_and_one_that_has_no_time_503(self):
        def fail(_: object) -> None:
            raise ValueError("secret")

        def be_late(_: object) -> None:
            raise TimeoutError

        answers = []
        pages = Pages({"/fail": fail, "/late": be_late, "/ok": lambda _: plain("200 OK", "ok")})
        for path in ("/fail", "/late", "/ok"):
            body = pages(
                {"PATH_INFO": path, "REQUEST_METHOD": "GET"}, lambda status, _: answers.append(status)
            )
            assert b"secret" not in b"".join(body)
        assert answers == ["500 Internal Server Error", "503 Service Unavailable", "200 OK"]


class TestScrapes:
    def test_that_are_asked_for_at_once_are_made_one_at_a_time_and_shared(self):
        made = []
        may_end = threading.Event()

        def app(environ, start_response):
            made.append(environ)
            assert may_end.wait(10)
            start_response("200 OK", [])
            return [b"%d" % len(made)]

        page = metrics._Scrapes(app).page
        answers = []
        first = threading.Thread(target=lambda: answers.append(page({}).body))
        first.start()
        until(lambda: made)
        # they ask while one is made that may have begun too early for them
        others = [threading.Thread(target=lambda: answers.append(page({}).body)) for _ in range(7)]
        for thread in others:
            thread.start()
        may_end.set()
        for thread in [first, *others]:
            thread.join()
        assert sorted(answers) == [b"1", *[b"2"] * 7]

    def test_in_another_form_is_another_scrape(self):
        made = []

        def app(environ, start_response):
            made.append(environ)
            start_response("200 OK", [])
            return [b"%d" % len(made)]

        scrapes = metrics._Scrapes(app)
        assert scrapes.page({}).body == b"1"
        assert scrapes.page({}).body == b"2"
        assert scrapes.page({"HTTP_ACCEPT": "x"}).body == b"3"

    def test_leave_three_quarters_of_the_time_free(self, monkeypatch):
        pauses = []
        clock = [100.0]
        monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=pauses.append))

        def app(_, start_response):
            clock[0] += 3
            start_response("200 OK", [])
            return []

        scrapes = metrics._Scrapes(app)
        scrapes.page({})
        clock[0] += 1
        scrapes.page({})
        assert pauses == [0, 8]


class TestCrowd:
    """More connections than there may be."""

    @pytest.fixture
    def crowd(self, monkeypatch):
        """A function that has connections of a host made, of which all have asked."""
        monkeypatch.setattr(metrics_http.ThreadingMixIn, "process_request", Mock())
        server = metrics_http.HttpServer("127.0.0.1", 0)
        pairs = []

        def connect(host: str, count: int) -> list[bool]:
            """Return which of them are served."""
            come = [socket.socketpair() for _ in range(count)]
            pairs.extend(come)
            for ours, _ in come:
                server.process_request(ours, (host, 1))
                server.note_request(ours)
            return [ours.fileno() >= 0 for ours, _ in come]

        yield connect
        server.server_close()
        for sock in sum(pairs, ()):
            sock.close()

    def test_of_one_host_keeps_no_other_host_out(self, crowd):
        assert crowd("10.0.0.1", 10) == [True] * 8 + [False] * 2
        assert crowd("10.0.0.2", 1) == [True]

    def test_of_many_hosts_has_bounded_threads(self, crowd, monkeypatch):
        monkeypatch.setattr(metrics_http, "THREADS_S", 0)
        crowd("10.0.0.1", 8)
        served = [crowd(f"10.0.1.{n}", 1) for n in range(100)]
        # those that were cut have not ended yet
        assert served.count([True]) <= metrics_http.METRICS_CONNECTIONS

    def test_of_readers_that_are_slow_keeps_nobody_out_for_long(self, crowd, monkeypatch):
        crowd("10.0.0.1", 8)
        assert crowd("10.0.0.1", 1) == [False]
        monkeypatch.setattr(metrics_http, "PATIENCE_S", -1)
        assert crowd("10.0.0.1", 1) == [True]

    def test_of_every_kind_costs_queues_nothing_and_keeps_probes_of_others_going(self, server, port):
        half = b"GET /metrics HTTP/1.1\r\nX: "
        said = (b"", b"G", half, half + b"x" * 60_000, b"GET /metrics HTTP/1.1\r\n\r\n")
        with contextlib.ExitStack() as stack:
            wire = stack.enter_context(contextlib.closing(server.connect()))
            longest = 0.0
            for number in range(40):
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
                with contextlib.suppress(ConnectionError):  # it may have to make room for others
                    sock.sendall(said[number % len(said)])  # and reads nothing
                begun = time.monotonic()
                assert wire.set(b"crowded", b"x") == b"STORED\r\n"
                longest = max(longest, time.monotonic() - begun)
            assert longest < 1
            probe = stack.enter_context(
                socket.create_connection(("127.0.0.1", port), timeout=20, source_address=("127.0.0.9", 0))
            )
            probe.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
            assert probe.recv(15) == b"HTTP/1.0 200 OK"
            assert wire.ask(b"delete crowded\r\n") == b"DELETED\r\n"

    def test_that_keeps_on_connecting_is_accepted_at_a_pace(self, monkeypatch):
        pauses = []
        clock = SimpleNamespace(monotonic=lambda: 1000.0, sleep=pauses.append)
        monkeypatch.setattr(metrics_http, "time", clock)
        monkeypatch.setattr(metrics_http.WSGIServer, "get_request", Mock())
        server = metrics_http.HttpServer("127.0.0.1", 0)
        for _ in range(metrics_http.ACCEPTED_AT_ONCE + 10):
            server.get_request()
        server.server_close()
        assert pauses[: metrics_http.ACCEPTED_AT_ONCE] == [0] * metrics_http.ACCEPTED_AT_ONCE
        assert pauses[-1] == pytest.approx(9 / metrics_http.ACCEPTED_PER_S)
