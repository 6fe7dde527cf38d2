"""What HTTP requests are answered with: a page for each path, to GET and HEAD alone.

A WSGI application. What is wrong with a request is the client's to see, and nothing that it sends is logged.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple
from wsgiref.types import StartResponse, WSGIEnvironment

import structlog

log = structlog.get_logger()

METHODS = ("GET", "HEAD")


class Answer(NamedTuple):
    """An answer to a GET."""

    status: str
    body: bytes
    headers: tuple[tuple[str, str], ...]


def plain(status: str, line: str, *headers: tuple[str, str]) -> Answer:
    """Return an answer of one line of text, which is not to be kept."""
    return Answer(status, line.encode() + b"\n", (("Content-Type", "text/plain; charset=utf-8"), *headers))


Page = Callable[[WSGIEnvironment], Answer]


class Pages:
    """The pages of a server, by path."""

    def __init__(self, pages: Mapping[str, Page]) -> None:
        self._pages = pages

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request, as WSGI has it."""
        answer = self._answer(environ)
        length = ("Content-Length", str(len(answer.body)))
        start_response(answer.status, [*answer.headers, length])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [answer.body]

    def _answer(self, environ: WSGIEnvironment) -> Answer:
        page = self._pages.get(environ["PATH_INFO"])
        if page is None:
            return plain("404 Not Found", f"there is only {' '.join(self._pages)}")
        if environ["REQUEST_METHOD"] not in METHODS:
            return plain("405 Method Not Allowed", "only GET and HEAD", ("Allow", ", ".join(METHODS)))
        try:
            return page(environ)
        except TimeoutError:
            return plain("503 Service Unavailable", "the server is too busy to answer")
        except Exception:  # most likely of what the client has sent
            log.debug("a request over HTTP failed", exc_info=True)
            return plain("500 Internal Server Error", "this cannot be answered")
