"""A `get` of several queues, whose items come in one reply."""

import functools
import itertools
from collections.abc import Iterable, Iterator

from darner._proto import Request
from darner.errors import JournalError, NotReadyError, StatusError, UnavailableError
from darner.queues.pending import Pending
from darner.queues.waiters import Source
from darner.wire.commands.slicing import retry, run_in_slices
from darner.wire.commands.steps import Steps
from darner.wire.connection import Connection
from darner.wire.replies import CLOSE_FIRST, END, NOT_HELD, server_error


def get_many(connection: Connection, first: Request, steps: Steps) -> None:
    """Fetch at most one item of each queue, in one reply; or in a part of one, if the keys of a long line
    come in runs. A queue out of service counts as empty, for an error among values cannot be told from the
    data behind it; the log has it."""
    requests = [first, *(first.rest or ())]
    connection.expect_long_work()
    refusal = refusal_of(connection, requests, are_all_fetched=True)
    if refusal is not None:
        _refuse(connection, refusal, is_run=first.is_run)
        return
    if any(request.fetches for request in requests):
        try:
            connection.broker.status.check_gets()
        except StatusError as error:
            _refuse(connection, server_error(error), is_run=first.is_run)
            return
    run_in_slices(connection, _get_many(connection, requests, steps, is_run=first.is_run))


def _get_many(
    connection: Connection, requests: list[Request], steps: Steps, *, is_run: bool
) -> Iterator[Pending | None]:
    try:
        # at once: when its turn comes, an item may have been taken back
        yield from released(
            connection, (request for request in requests if request.close and request.token), steps
        )
    except JournalError as error:
        _refuse(connection, server_error(error), is_run=is_run)
        return
    ManyGets(connection, iter(requests), steps, is_run=is_run).advance()


def released(connection: Connection, requests: Iterable[Request], steps: Steps) -> Iterator[Pending]:
    """Close or abort what these requests say. Raises JournalError if that fails."""
    for request in requests:
        while True:
            try:
                steps.release(connection, request)
            except NotReadyError as error:
                yield error.journal
                continue
            break


def get_end(connection: Connection, _: Request) -> None:
    """End a `get` whose keys came in runs."""
    connection.sender.replies.append(END)


def refusal_of(connection: Connection, requests: list[Request], *, are_all_fetched: bool) -> bytes | None:
    """Return the error of a `get` of several queues that asks to end what the client does not hold, or holds
    too much; None if it can be served. `are_all_fetched` is whether each of `requests` may give an item.

    Each is asked as it will be when those before it are served, so that no part of a wrong one is."""
    holds = connection.holds
    # by queue, how many items will be held more than now; and the tokens of those that will not be
    more: dict[bytes, int] = {}
    ended: dict[bytes, set[int]] = {request.queue: set() for request in requests if request.token}
    for request in requests:
        name = request.queue
        change = more.get(name, 0)
        if request.token:
            if request.token in ended[name] or not holds.has_item(name, request.token):
                return NOT_HELD
            ended[name].add(request.token)
            change -= 1
        elif request.close or request.abort:
            if holds.has_as_many(name, 1 - change):
                change -= 1
                if name in ended:
                    oldest = (token for token in holds.tokens(name) if token not in ended[name])
                    ended[name].add(next(oldest, 0))
        elif not request.peek and holds.has_as_many(name, _most_held(connection, request) - change):
            return CLOSE_FIRST
        more[name] = change + (request.open and are_all_fetched)
    return None


def _most_held(connection: Connection, request: Request) -> int:
    """Return how many items of its queue stand in the way of a `get`."""
    return connection.broker.settings(request.queue).max_open_reads if request.open else 1


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
        sources = connection.sources
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
        # a large item is sent before another is fetched: each may take a descriptor; and what an abort leads
        # to is done before that
        if (
            connection.should_yield
            or (item is not None and item.record is None)
            or (request.abort and connection.sender.pending_writes)
        ):
            connection.continue_later(self.advance)
            return False
        return True

    def _fetch_again(self, request: Request, queue: Source | None) -> None:
        if self._fetch(request, queue):
            self.advance()
