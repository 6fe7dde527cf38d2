"""A real page: `darner web` in a process of its own, asked over HTTP."""

import contextlib
import html
import http.client
import os
import re
import select
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlencode

from running import DARNER, WAIT_S


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    text: str


class Page:
    """The process, and requests to it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.log = ""
        # how much of the log was returned
        self._seen = 0
        found = re.search(r"url=http://127\.0\.0\.1:(\d+)/", self.wait_for_log("the page is up"))
        self.port = int(found[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def wait_for_log(self, text: str) -> str:
        """Read the log until a line that was not returned before contains `text`; return that line."""
        comes = select.poll()
        comes.register(self.process.stderr, select.POLLIN)
        while True:
            if found := re.compile(rf".*{re.escape(text)}.*\n").search(self.log, self._seen):
                self._seen = found.end()
                return found[0]
            data = self.process.stderr.read(65536) if comes.poll(WAIT_S * 1000) else b""
            if not data:
                raise AssertionError(f"no {text!r} in the log:\n{self.log}")
            self.log += data.decode()

    def get(self, path: str, **headers: str) -> Answer:
        return self._ask("GET", path, None, headers)

    def post(self, path: str, fields: Mapping[str, str], **headers: str) -> Answer:
        headers = {"Content-Type": "application/x-www-form-urlencoded"} | headers
        return self._ask("POST", path, urlencode(fields), headers)

    def token(self, path: str, **headers: str) -> str:
        """Return what a form must bring back."""
        return html.unescape(re.search(r'name="token" value="(\w+)"', self.get(path, **headers).text)[1])

    def _ask(self, method: str, path: str, body: str | None, headers: Mapping[str, str]) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        with contextlib.closing(connection):
            headers = {name.replace("_", "-"): text for name, text in headers.items()}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read().decode())


@contextlib.contextmanager
def showing(*options: str, command: Sequence[str] = (DARNER,), **environment: str) -> Iterator[Page]:
    """Start a page at any port; it must end well. `command` stands in for the console script."""
    process = subprocess.Popen(
        [*command, "web", "--listen", "127.0.0.1:0", *options],
        stderr=subprocess.PIPE, bufsize=0, env=os.environ | environment,
    )  # fmt: skip
    try:
        page = Page(process)
        yield page
        process.terminate()
        page.log += process.communicate(timeout=10)[1].decode()
        assert "Traceback" not in page.log
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
