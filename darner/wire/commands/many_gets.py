"""A `get` of several queues, whose items come in one reply."""

import functools
import itertools
from collections.abc import Iterator

from darner._proto import Request
from darner.errors import JournalError, NotReadyError, StatusError, UnavailableError
from darner.queues.waiters import Source
from darner.wire.commands.slicing import retry
from darner.wire.commands.steps import Steps
from darner.wire.connection import Connection
from darner.wire.replies import CLOSE_FIRST, END, server_error


def get_many(connection: Connection, first: Request, steps: Steps) -> None:
    """Fetch at most one item of each queue, in one reply; or in a part of one, if the keys of a long line
    come in runs. A queue out of service counts as empty, for an error among values cannot be told from the
    data behind it; the log has it."""
    requests = [first, *(first.rest or ())]
    connection.expect_long_work()
    held: dict[bytes, int] = {}
    for request in requests:
        count = held.get(request.queue)
        if count is None:
            count = connection.holds.count(request.queue)
        if count and _must_close_first(connection, request, count):
            _refuse(connection, CLOSE_FIRST, is_run=first.is_run)
            return
        ends = (request.close or request.abort) and count > 0
        held[request.queue] = count - ends + request.open
    if any(request.fetches for request in requests):
        try:
            connection.broker.status.check_gets()
        except StatusError as error:
            _refuse(connection, server_error(error), is_run=first.is_run)
            return
    ManyGets(connection, iter(requests), steps, is_run=first.is_run).advance()


def get_end(connection: Connection, _: Request) -> None:
    """End a `get` whose keys came in runs."""
    connection.sender.replies.append(END)


def _must_close_first(connection: Connection, request: Request, held: int) -> bool:
    """Return whether `held` items of its queue stand in the way of a `get`."""
    if request.close or request.abort or request.peek:
        return False
    return not request.open or held >= connection.broker.settings(request.queue).max_open_reads


def _refuse(connection: Connection, refusal: bytes, *, is_run: bool) -> None:
    connection.sender.replies.append(refusal)
    if is_run:
        connection.skip_keys()


class ManyGets:
    """The gets of one reply under way."""

    __slots__ = ("_connection", "_is_run", "_requests", "_steps")

    def __init__(
        self, connection: Connection, requests: Iterator[Request], steps: Steps, *, is_run: bool
    ) -> None:
        """`requests` are one for each queue. With `is_run` others follow in the same reply."""
        self._connection = connection
        self._requests = requests
        self._steps = steps
        self._is_run = is_run

    def advance(self) -> None:
        """Fetch what is left."""
        connection = self._connection
        sources = connection.broker.sources
        prepare = self._steps.prepare
        for request in self._requests:
            try:
                queue = prepare(connection, request, sources.get(request.queue))
            except NotReadyError as error:
                self._requests = itertools.chain([request], self._requests)
                retry(connection, error, self.advance)
                return
            except UnavailableError:
                continue
            if not self._fetch(request, queue):
                return
        if not self._is_run:
            connection.sender.replies.append(END)

    def _fetch(self, request: Request, queue: Source | None) -> bool:
        """Fetch the item that `request` asks for; returns whether the rest is to be fetched at once."""
        connection = self._connection
        item = None
        try:
            if queue is not None and request.fetches:
                item = self._steps.fetch(request, queue)
        except NotReadyError as error:
            retry(connection, error, functools.partial(self._fetch_again, request, queue))
            return False
        except JournalError:
            return True
        self._steps.answer(connection, request, queue, item, one_of_many=True)
        # a large item is sent before another is fetched: each may take a descriptor
        if connection.should_yield or (item is not None and item.record is None):
            connection.continue_later(self.advance)
            return False
        return True

    def _fetch_again(self, request: Request, queue: Source | None) -> None:
        if self._fetch(request, queue):
            self.advance()
