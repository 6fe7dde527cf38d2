# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""The commands `get` and `gets`, and `mg` and `md` as the parser makes fetches of them."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, cast

from darner import _proto
from darner._proto import Request, value
from darner._records import CHUNK_BYTES, Item
from darner.errors import JournalError, MendingError, StatusError, UnavailableError
from darner.meta import Meta
from darner.queues.cursor import Cursor
from darner.queues.queue import Queue
from darner.queues.waiters import Source, Waiter
from darner.wire.commands.delivering import Delivery
from darner.wire.commands.slicing import retry
from darner.wire.connection import Connection
from darner.wire.replies import CLOSE_FIRST, DELETED, END, NOT_FOUND, server_error

# An item in memory that has more bytes is not copied as a whole to be sent.
LARGE_BYTES = CHUNK_BYTES


def get(connection: Connection, request: Request) -> None:
    """`get <queue>[/option]*` and `gets`, of one queue or several."""
    if request.rest is not None:
        _get_many(connection, [request, *request.rest], is_run=request.is_run)
        return
    if connection.holds.held and _holds_too_many(connection, request):
        connection.sender.replies.append(CLOSE_FIRST)
        return
    sources = connection.broker.sources
    queue = sources.get(request.queue)
    if queue is None or request.has_options:
        _get_otherwise(connection, request, queue)
        return
    try:
        item = queue.take()
    except JournalError as error:
        _fail(connection, request, queue, 0, error)
        return
    _answer(connection, request, queue, item)


def get_end(connection: Connection, _: Request) -> None:
    """End a `get` whose keys came in runs."""
    connection.sender.replies.append(END)


# One queue


def _get_otherwise(connection: Connection, request: Request, queue: Source | None) -> None:
    """Fetch with options, or from a queue that is not among the sources yet; or close one item by its id."""
    if request.meta is not None and request.meta.token is not None:
        _close_item(connection, request, request.meta.token)
        return
    try:
        if queue is None:
            queue = _find_source(connection, request)
            if queue is not None:  # it may be new
                connection.expect_long_work()
        if queue is not None:
            _prepare(connection, request, queue)
    except UnavailableError as error:
        connection.sender.replies.append(server_error(error))
        return
    if queue is None or not request.fetches:
        _answer(connection, request, queue, None)
        return
    timeout_ms = request.timeout_ms
    _fetch_or_wait(
        connection, request, queue, connection.clients.loop.time() + timeout_ms / 1000 if timeout_ms else 0
    )


def _close_item(connection: Connection, request: Request, id: int) -> None:
    """Remove one of the reserved items for good."""
    try:
        closed = connection.holds.close_item(request.queue, id)
    except JournalError as error:
        connection.sender.replies.append(server_error(error))
        return
    connection.counters.delete_hits += closed
    connection.counters.delete_misses += not closed
    connection.reply(request, DELETED if closed else NOT_FOUND)


def _holds_too_many(connection: Connection, request: Request) -> bool:
    """Return whether the items that the client holds stand in the way of a `get`."""
    if request.close or request.abort or request.peek or request.queue not in connection.holds.held:
        return False
    most = connection.broker.settings(request.queue).max_open_reads if request.open else 1
    return connection.holds.count(request.queue, most) >= most


def _find_source(connection: Connection, request: Request) -> Source | None:
    """Return the queue to fetch from, or to wait at; None if it is not there, or the name is an alias.

    What the client holds may be closed or aborted all the same, and whatever the server's status."""
    try:
        takes = request.fetches and not request.peek
        waits = request.fetches and request.timeout_ms > 0
        queue = connection.broker.routes.source(request.queue, takes=takes, waits=waits)
    except StatusError:
        _release(connection, request)
        if request.fetches:
            raise
        return None
    if queue is None:
        _release(connection, request)
    return queue


def _release(connection: Connection, request: Request) -> None:
    """Close or abort what is held, as the options say."""
    if request.close:
        connection.holds.close(request.queue)
    elif request.abort:
        connection.holds.abort(request.queue)


def _prepare(connection: Connection, request: Request, queue: Source) -> None:
    """Do what goes before a fetch: close or abort what is held, as the options say, and count."""
    _release(connection, request)
    if request.open:
        queue.counts.transactions += 1


def _fetcher(request: Request, queue: Source) -> Callable[[Any], Item | None]:
    kind = type(queue)
    return kind.reserve if request.open else kind.peek if request.peek else kind.take


def _fetch_or_wait(connection: Connection, request: Request, queue: Source, deadline: float) -> None:
    """Fetch an item, or wait for one until the time `deadline` of the loop; 0 if not at all."""
    try:
        item = _fetcher(request, queue)(queue)
    except JournalError as error:
        _fail(connection, request, queue, deadline, error)
        return
    if item is None and deadline:
        _wait(connection, request, queue, deadline)
    else:
        _answer(connection, request, queue, item, one_of_many=False, deadline=deadline)


def _fail(
    connection: Connection, request: Request, queue: Source, deadline: float, error: JournalError
) -> None:
    """Reply why nothing can be fetched; or try again, if that will soon be of use."""
    if isinstance(error, MendingError):
        retry(connection, error, lambda: _fetch_or_wait(connection, request, queue, deadline))
    else:
        connection.sender.replies.append(server_error(error))


def _wait(connection: Connection, request: Request, queue: Source, deadline: float) -> None:
    def end(queue: Source, item: Item | None) -> None:
        _answer(connection, request, queue, item, one_of_many=False, deadline=deadline)
        connection.end_wait()

    def fail(error: JournalError) -> None:
        connection.sender.replies.append(server_error(error))
        connection.end_wait()

    waiter = Waiter(_fetcher(request, queue), end, connection.has_disconnected, fail)
    queue.wait(waiter)
    timeout_ms = min(request.timeout_ms, int((deadline - connection.clients.loop.time()) * 1000) + 1)
    connection.begin_wait(waiter, max(0, timeout_ms), functools.partial(_time_out, waiter))


def _time_out(waiter: Waiter) -> None:
    waiter.cancel()
    waiter.deliver(waiter.queue, None)


# Several queues


def _get_many(connection: Connection, requests: list[Request], *, is_run: bool) -> None:
    """Fetch at most one item of each queue, in one reply; or in a part of one, if the keys of a long line
    come in runs. A queue out of service counts as empty, for an error among values cannot be told from the
    data behind it; the log has it."""
    connection.expect_long_work()
    held: dict[bytes, int] = {}
    for request in requests:
        count = held.get(request.queue)
        if count is None:
            count = connection.holds.count(request.queue)
        if _must_close_first(connection, request, count):
            _refuse_many(connection, CLOSE_FIRST, is_run=is_run)
            return
        ends = (request.close or request.abort) and count > 0
        held[request.queue] = count - ends + request.open
    if any(request.fetches for request in requests):
        try:
            connection.broker.status.check_gets()
        except StatusError as error:
            _refuse_many(connection, server_error(error), is_run=is_run)
            return
    _get_next(connection, iter(requests), is_run=is_run)


def _must_close_first(connection: Connection, request: Request, held: int) -> bool:
    """Return whether `held` items of its queue stand in the way of a `get`."""
    if not held or request.close or request.abort or request.peek:
        return False
    return not request.open or held >= connection.broker.settings(request.queue).max_open_reads


def _refuse_many(connection: Connection, refusal: bytes, *, is_run: bool) -> None:
    connection.sender.replies.append(refusal)
    if is_run:
        connection.skip_keys()


def _get_next(connection: Connection, requests: Iterator[Request], *, is_run: bool) -> None:
    """Fetch what is left of a `get` of several queues."""
    for request in requests:
        try:
            queue = connection.broker.sources.get(request.queue) or _find_source(connection, request)
            if queue is not None:
                _prepare(connection, request, queue)
        except UnavailableError:
            continue
        if not _get_one_of(connection, request, queue, requests, is_run=is_run):
            return
    if not is_run:
        connection.sender.replies.append(END)


def _get_one_of(
    connection: Connection,
    request: Request,
    queue: Source | None,
    rest: Iterator[Request],
    *,
    is_run: bool,
) -> bool:
    """Fetch the item that `request` asks for; returns whether the `rest` is to be fetched by the caller, not
    later."""
    item = None
    try:
        if queue is not None and request.fetches:
            item = _fetcher(request, queue)(queue)
    except MendingError as error:

        def again() -> None:
            if _get_one_of(connection, request, queue, rest, is_run=is_run):
                _get_next(connection, rest, is_run=is_run)

        retry(connection, error, again)
        return False
    except JournalError:
        return True
    _answer(connection, request, queue, item, one_of_many=True)
    # a large item is sent before another is fetched: each may take a descriptor
    if connection.should_yield or (item is not None and item.record is None):
        connection.continue_later(lambda: _get_next(connection, rest, is_run=is_run))
        return False
    return True


# Replies


def _answer(
    connection: Connection,
    request: Request,
    queue: Source | None,
    item: Item | None,
    *,
    one_of_many: bool = False,
    deadline: float = 0,
) -> None:
    """Count a fetch, and reply with the item and `END`, or `END` alone; no `END` behind one of many."""
    counters = connection.counters
    if request.peek:
        counters.cmd_peek += 1
    elif request.fetches:
        counters.cmd_get += 1
        if item is None:
            counters.get_misses += 1
        else:
            counters.get_hits += 1
    if item is None or queue is None:
        if not one_of_many:
            connection.sender.replies.append(END if request.meta is None else request.meta.answer(END))
        return
    if request.open:
        connection.holds.add(queue, item)
    if request.meta is not None and not request.meta.wants_value:
        _send_line(connection, request, queue, item)
    elif item.record is None or item.size > LARGE_BYTES:
        delivery = FetchDelivery(connection, request, queue, item, deadline, is_one_of_many=one_of_many)
        delivery.send(large_header(connection, request, queue, item), is_one_of_many=one_of_many)
        return
    else:
        send_item(connection, request, item, one_of_many=one_of_many, queue=queue)
    if request.open:
        queue.forget_data(item)


def _send_line(connection: Connection, request: Request, queue: Source, item: Item) -> None:
    """Reply with what a meta command asks of an item, if that is not its data."""
    if item.record is None and not (request.open or request.peek):
        try:
            queue.close(item)
        except JournalError as error:
            queue.give_back(item)
            connection.sender.replies.append(server_error(error))
            return
    connection.sender.replies.append(_meta_line(request, queue, item))


def _meta_line(request: Request, queue: Source, item: Item) -> bytes:
    """Return the line that a meta command is answered with for an item."""
    owner = queue if isinstance(queue, Queue) else cast("Cursor", queue).queue
    now = owner.clock()
    left_s = owner.times.age_ms(now, item.expires_ms) // 1000 if item.expires_ms else -1
    age_s = owner.times.age_ms(item.enqueued_ms, now) // 1000
    meta = cast("Meta", request.meta)
    return meta.found(item.size, item.flags, item.id, item.attempts, left_s, age_s)


def send_item(
    connection: Connection,
    request: Request,
    item: Item,
    *,
    one_of_many: bool = False,
    queue: Source | None = None,
) -> None:
    """Reply with an item, and `END` behind it unless it is one of many. `queue` is where it is from, which a
    meta command needs."""
    if request.meta is None:
        reply = value(_key(connection, request), item, request.with_cas, not one_of_many)
    else:
        reply = b"%s%s\r\n" % (_meta_line(request, cast("Source", queue), item), item.data)
    sender = connection.sender
    sender.replies.append(reply)
    sender.gathered_bytes += len(reply)


def _key(connection: Connection, request: Request) -> bytes:
    """Return the key that a value has in a reply."""
    return request.queue.partition(b"/")[0] if connection.bare_keys else request.key


def large_header(connection: Connection, request: Request, queue: Source, item: Item) -> bytes:
    """Return the line that stands before the bytes of a large item."""
    if request.meta is not None:
        return _meta_line(request, queue, item)
    return _proto.value_header(
        _key(connection, request), item.flags, item.size, item.id if request.with_cas else 0
    )


class FetchDelivery(Delivery):
    """A large item that a `get` sends. If it is not to be had, the next one is fetched."""

    __slots__ = ("_deadline", "is_one_of_many")

    def __init__(
        self,
        connection: Connection,
        request: Request,
        queue: Source,
        item: Item,
        deadline: float = 0,
        *,
        is_one_of_many: bool = False,
    ) -> None:
        super().__init__(connection, request, queue, item)
        self._deadline = deadline
        self.is_one_of_many = is_one_of_many

    def replace(self, error: JournalError | None) -> None:
        """Reply with the next item, or with the error, in front of all other replies."""
        connection, request = self.connection, self.request
        counters = connection.counters
        if request.peek:
            counters.cmd_peek -= 1
        else:
            counters.cmd_get -= 1
            counters.get_hits -= 1
        replies = connection.sender.replies
        rest, replies[:] = replies[:], []
        if self.is_one_of_many:
            try:
                item = None if error is not None else _fetcher(request, self.queue)(self.queue)
            except JournalError:
                item = None
            _answer(connection, request, self.queue, item, one_of_many=True)
        else:
            del rest[0]  # its END
            if error is not None:
                replies.append(server_error(error))
            else:
                _fetch_or_wait(connection, request, self.queue, self._deadline)
        replies += rest
