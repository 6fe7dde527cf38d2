"""The web app and its workers."""

import contextlib
import http.client
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from programs import Program, program
from running import until

FUNCTION = "examples.webhooks.deliver:deliver"


class Receiver(ThreadingHTTPServer):
    """Takes webhooks, and answers as the test says."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.got: list[tuple[str, object]] = []
        self.status = 204
        self.answers = threading.Event()
        self.answers.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Answer(BaseHTTPRequestHandler):
    """Notes one webhook and answers it."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.got.append((self.headers["Idempotency-Key"], body))
        self.server.answers.wait(30)
        with contextlib.suppress(OSError):  # whoever asked may have been killed
            self.send_response(self.server.status)
            self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        yield receiver
        receiver.answers.set()
        receiver.shutdown()


class App:
    """The web app, running, and its callers."""

    def __init__(self, examples) -> None:
        self._program = examples.start("webhooks/app.py", PORT="0")
        line = self._program.wait_for("Uvicorn running on")
        self._port = int(re.search(r"127\.0\.0\.1:(\d+)", line)[1])

    def ask(self, method: str, body: object = None, **headers: str) -> tuple[int, object]:
        """Send a request; return the status and the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, "/webhooks", json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, json.load(answer)

    def post(self, receiver: Receiver, body: object, key: str) -> None:
        """Have the app take a webhook."""
        hook = {"url": receiver.url, "body": body}
        assert self.ask("POST", hook, **{"Idempotency-Key": key}) == (202, {"id": key})


@pytest.fixture
def app(examples) -> App:
    return App(examples)


def working(examples, *options: str) -> contextlib.AbstractContextManager[Program]:
    """Start a worker."""
    words = ("-m", "darner.work", FUNCTION, "--queue", "webhooks", "--codec", "json")
    return program(*words, *options, **examples.environment)


def test_a_webhook_is_delivered_once_though_its_caller_sends_it_twice(examples, app, receiver):
    for _ in range(2):
        app.post(receiver, {"paid": True}, "order-17")
    app.post(receiver, {"paid": False}, "order-18")
    assert app.ask("GET") == (200, {"waiting": 2, "failed": []})
    with working(examples) as worker:
        until(lambda: len(receiver.got) == 2, 20)
        assert worker.end() == 0
    assert sorted(receiver.got) == [("order-17", {"paid": True}), ("order-18", {"paid": False})]
    assert app.ask("GET") == (200, {"waiting": 0, "failed": []})


def test_the_next_worker_delivers_what_a_killed_one_had_under_way(examples, app, receiver):
    receiver.answers.clear()
    app.post(receiver, "body", "order-17")
    with working(examples) as worker:
        until(lambda: receiver.got, 20)
        worker.kill()
        receiver.answers.set()
    with working(examples) as worker:
        until(lambda: len(receiver.got) == 2, 20)
        assert worker.end() == 0
    assert receiver.got == [("order-17", "body")] * 2
    assert app.ask("GET") == (200, {"waiting": 0, "failed": []})


def test_a_webhook_that_cannot_be_delivered_ends_among_the_failed(configured_examples, receiver):
    app = App(configured_examples)
    receiver.status = 500
    app.post(receiver, "body", "order-17")
    with working(configured_examples, "--first-pause", "100ms"):
        until(lambda: app.ask("GET")[1]["failed"], 60)
    assert len(receiver.got) == 5
    hook = {"id": "order-17", "url": receiver.url, "body": "body"}
    assert app.ask("GET") == (200, {"waiting": 0, "failed": [hook]})


def test_a_request_that_is_no_webhook_is_refused(app):
    for sent in (None, [], {"url": "http://host/"}, {"url": "file:///etc/hosts", "body": 1}):
        status, answer = app.ask("POST", sent)
        assert status == 400
        assert answer.keys() == {"error"}


def test_the_app_says_when_a_webhook_was_not_stored(examples, app, receiver):
    examples.server.kill()
    status, answer = app.ask("POST", {"url": receiver.url, "body": 1})
    assert status == 503
    assert answer["error"].startswith("try again: ")
    examples.server.start()
    app.post(receiver, "body", "order-17")
