"""A `get` that waits on several queues, and fetches one item in all."""

import functools
from collections import deque
from collections.abc import Iterator

from darner._proto import Request
from darner._records import Item
from darner.errors import JournalError, NotReadyError, UnavailableError
from darner.queues.pending import Pending
from darner.queues.waiters import Source, Waiter
from darner.wire.commands.many_gets import refusal_of, released
from darner.wire.commands.slicing import run_in_slices
from darner.wire.commands.steps import Steps
from darner.wire.connection import Connection
from darner.wire.replies import server_error

# On how many queues one client may wait: one that does not exist takes 8 KB meanwhile.
MAX_QUEUES = 256
TOO_MANY = b"CLIENT_ERROR too many queues to wait on: at most 256\r\n"


def get_any(connection: Connection, first: Request, steps: Steps) -> None:
    """Fetch an item of the first of these queues that has one; if none has, of whichever gets one first. What
    is to be closed or aborted is so before that, for each queue."""
    requests = [first, *(first.rest or ())]
    connection.expect_long_work()
    if len(requests) > MAX_QUEUES:
        refusal: bytes | None = TOO_MANY
    else:
        refusal = refusal_of(connection, requests, are_all_fetched=False)
    if refusal is not None:
        connection.sender.replies.append(refusal)
        return
    run_in_slices(connection, _get_any(connection, requests, steps))


def _get_any(connection: Connection, requests: list[Request], steps: Steps) -> Iterator[Pending | None]:
    try:
        yield from released(connection, requests, steps)
    except JournalError as error:
        connection.sender.replies.append(server_error(error))
        return
    fetches = [request for request in requests if request.fetches]
    if fetches:
        AnyGet(connection, fetches, steps).begin()
    else:
        steps.answer(connection, requests[0], None, None)


class AnyGet:
    """A `get` of several queues under way, of which one gives the item.

    A queue that is out of service, or cannot be read, is passed over. Only if all are, the reply is the error
    of the first.
    """

    __slots__ = ("_connection", "_deadline", "_errors", "_requests", "_steps", "_timeout_ms")

    def __init__(self, connection: Connection, requests: list[Request], steps: Steps) -> None:
        """`requests` fetch, and are in the order in which the queues are asked."""
        self._connection = connection
        self._steps = steps
        # by the names of their queues, of which none is asked twice
        self._requests: dict[bytes, Request] = {}
        for request in requests:
            self._requests.setdefault(request.queue, request)
        self._timeout_ms = requests[0].timeout_ms
        self._deadline = connection.clients.loop.time() + self._timeout_ms / 1000
        self._errors: list[UnavailableError] = []

    def begin(self) -> None:
        """Look for an item in all queues; wait for one, or reply that there is none."""
        run_in_slices(self._connection, self._look())

    def _look(self) -> Iterator[Pending | None]:
        """Do so a step at a time; a step gives what the next one has to wait for."""
        # all before the first is asked: to name a child is to subscribe, wherever the item comes from
        sources: deque[Source] = deque()
        for source in self._sources(waits=False):
            sources.append(source)
            yield None
        while sources:
            item = None
            try:
                item = self._fetch(sources[0])
            except NotReadyError as error:
                yield error.journal
                continue
            except JournalError as error:
                self._errors.append(error)
            if item is not None:
                self._answer(sources[0], item)
                return
            sources.popleft()
            yield None
        if self._timeout_ms and len(self._errors) < len(self._requests):
            self._wait()
        else:
            self._end()

    def _sources(self, *, waits: bool) -> Iterator[Source]:
        """Iterate over what can be fetched from or, if it `waits`, be waited at; note the errors of the
        others."""
        self._errors.clear()
        for name, request in self._requests.items():
            try:
                source = self._connection.broker.source(
                    name,
                    takes=not request.peek,
                    waits=waits,
                    has_disconnected=self._connection.has_disconnected,
                )
            except UnavailableError as error:
                self._errors.append(error)
                continue
            if source is not None:
                yield source

    def _fetch(self, source: Source) -> Item | None:
        return self._steps.fetch(self._requests[source.name], source)

    def _answer(self, source: Source | None, item: Item | None) -> None:
        request = next(iter(self._requests.values())) if source is None else self._requests[source.name]
        if source is not None and request.open:
            source.counts.transactions += 1
        self._steps.answer(self._connection, request, source, item, again=self.begin)

    def _end(self) -> None:
        """Reply that there is nothing, or why all queues have failed."""
        if len(self._errors) < len(self._requests):
            self._answer(None, None)
        else:
            self._connection.sender.replies.append(server_error(self._errors[0]))

    def _wait(self) -> None:
        """Wait in the line of each queue, until one of them serves the client."""
        connection = self._connection
        waiter = Waiter(self._fetch, self._deliver, connection.has_disconnected, self._fail)
        left_ms = int((self._deadline - connection.clients.loop.time()) * 1000) + 1
        timeout_ms = min(self._timeout_ms, left_ms)
        connection.begin_wait(waiter, max(0, timeout_ms), functools.partial(self._time_out, waiter))
        steps = self._line_up(waiter)
        for _ in steps:
            if connection.should_yield:
                connection.clients.loop.call_soon(connection.clients.run_in_slices, steps)
                return

    def _line_up(self, waiter: Waiter) -> Iterator[None]:
        """Have the client wait at each queue, a step each."""
        # Looked up once more: others may have made or deleted queues since, and those that do not exist can
        # be waited at. One by one: a placeholder is found again only while a client waits there.
        for source in self._sources(waits=True):
            if waiter.is_over:
                return
            source.wait(waiter)
            yield
        if not waiter.is_over and not waiter.sources:
            self._end()
            self._connection.end_wait()
        # an item may have come to a queue after it was asked: another one may have moved it there
        for source in list(waiter.sources):
            source.serve()

    def _time_out(self, waiter: Waiter) -> None:
        if waiter.is_over:
            return  # an item is on its way to it
        waiter.cancel()
        self._deliver(None, None)

    def _deliver(self, source: Source | None, item: Item | None) -> None:
        self._answer(source, item)
        self._connection.end_wait()

    def _fail(self, error: JournalError) -> None:
        self._connection.sender.replies.append(server_error(error))
        self._connection.end_wait()
