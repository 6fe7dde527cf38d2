# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""What `set` and `get` do: an item in, an item out. Other verbs are in commands.py.

A function takes the connection and the request, acts on the broker's queues, and puts its reply at the
end of `connection.out`. What it says is in the log by then; only a reply to a set that is synced is held
until the log is on the disk.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from darner import _proto
from darner._proto import Request, Verb, value
from darner._records import CHUNK_BYTES, Item
from darner.errors import (
    DamagedItemError,
    DarnerError,
    ItemTooLargeError,
    JournalError,
    MendingError,
    QueueFullError,
    StatusError,
    UnavailableError,
)
from darner.journal.blob import BlobReader
from darner.queues.fanout import Fanout
from darner.queues.queue import Queue
from darner.queues.upload import Upload
from darner.queues.waiters import Source, Waiter
from darner.wire.replies import (
    CLOSE_FIRST,
    DELETED,
    END,
    NOT_FOUND,
    NOT_STORED,
    STORED,
    TOO_LARGE,
    server_error,
)

if TYPE_CHECKING:
    from darner.meta import Meta
    from darner.queues.cursor import Cursor
    from darner.wire.connection import Connection, Stream

# An item in memory that has more bytes is not copied as a whole to be sent.
LARGE_BYTES = CHUNK_BYTES

# Storing


def _not_stored(error: DarnerError) -> bytes:
    if isinstance(error, ItemTooLargeError):
        return TOO_LARGE
    return NOT_STORED if isinstance(error, QueueFullError) else server_error(error)


def set_(connection: "Connection", request: Request) -> None:
    """`set <queue>[/sync][/delay=<ms>] <flags> <exptime> <bytes> [noreply]`, its data in memory."""
    connection.counters.cmd_set += 1
    sinks = connection.broker.sinks
    queue = sinks.get(request.queue)
    if queue is None or request.delay_ms or request.meta is not None:
        _set_elsewhere(connection, request)
        return
    try:
        queue.push(request.record, request.flags, request.exptime)
    except DarnerError as error:
        connection.reply(request, _not_stored(error), is_error=True)
        return
    connection.out.append(b"" if request.noreply else STORED)
    if request.sync or queue.syncs:
        connection.broker.syncing.sync((queue,), connection, len(connection.out) - 1, asked=request.sync)
    if queue.journal.is_backlogged:
        _wait_for_room(connection, queue)


def _set_elsewhere(connection: "Connection", request: Request) -> None:
    """A set to a new queue, or to several, or for later."""
    connection.expect_long()
    record, flags, exptime, delay_ms = request.record, request.flags, request.exptime, request.delay_ms
    try:
        sink = connection.broker.routes.sink(request.queue)
        if isinstance(sink, Fanout):
            sink.push(record, flags, exptime, delay_ms)
            queues = sink.queues
        else:
            queues = (sink,)
            if delay_ms:
                sink.push_delayed(record, flags, exptime, delay_ms)
            else:
                sink.push(record, flags, exptime)
    except DarnerError as error:
        connection.reply(request, _not_stored(error), is_error=True)
        return
    _stored(connection, request, queues)


def _stored(connection: "Connection", request: Request, queues: Sequence[Queue]) -> None:
    """Say that an item is in each of these queues."""
    reply = b"" if request.noreply else STORED
    meta = request.meta
    if meta is not None:
        # one that is delayed has no id yet
        reply = meta.answer(STORED, 0 if request.delay_ms else queues[0].journal.state.next_id - 1)
    connection.out.append(reply)
    slot = len(connection.out) - 1
    connection.broker.syncing.sync(queues, connection, slot, asked=request.sync)
    if meta is not None and not reply:
        connection.keep_quiet(slot)
    for queue in queues:
        if queue.journal.is_backlogged:
            _wait_for_room(connection, queue)


def _wait_for_room(connection: "Connection", queue: Queue) -> None:
    queue.journal.held_back.append(connection)
    connection.hold()


def set_begin(connection: "Connection", request: Request) -> None:
    """As `set`, of an item too large for memory: its chunks follow."""
    connection.counters.cmd_set += 1
    try:
        connection.begin_upload(request, connection.broker.routes.upload(request.queue, request.size))
    except DarnerError as error:
        connection.begin_upload(request, error)


def set_chunk(connection: "Connection", request: Request) -> None:
    """The next chunk of the item begun."""
    upload = connection.upload
    if not isinstance(upload, Upload):
        return
    try:
        upload.write(request.data)
        connection.wait_for_room(upload)
    except DarnerError as error:
        upload.abandon()
        connection.upload = error


def set_end(connection: "Connection", request: Request) -> None:
    """All chunks of the item begun have come."""
    connection.expect_long()
    begin, upload = connection.end_upload()
    if isinstance(upload, DarnerError):
        connection.reply(request, _not_stored(upload), is_error=True)
        return

    def done(error: DarnerError | None) -> None:
        if error is None:
            _stored(connection, begin, upload.queues)
        else:
            connection.reply(begin, _not_stored(error), is_error=True)
        connection.end_finish()

    connection.begin_finish()
    upload.finish(begin.flags, begin.exptime, done, sync=begin.sync, delay_ms=begin.delay_ms)


# Fetching


def get(connection: "Connection", request: Request) -> None:
    """`get <queue>[/option]*` and `gets`, of one queue or several."""
    if request.rest is not None:
        _get_many(connection, [request, *request.rest], is_run=request.is_run)
        return
    if connection.holds.held and _holds_too_many(connection, request):
        connection.out.append(CLOSE_FIRST)
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


def get_end(connection: "Connection", _: Request) -> None:
    """The end of a `get` whose keys came in runs."""
    connection.out.append(END)


def takes_item(request: Request) -> bool:
    """Whether a request removes an item for good that only its reply has then."""
    return request.verb in (Verb.GET, Verb.GETS) and any(
        each.fetches and not (each.open or each.peek) for each in (request, *(request.rest or ()))
    )


def _get_otherwise(connection: "Connection", request: Request, queue: Source | None) -> None:
    """A get with options, or of what is no queue yet, or more than that."""
    if request.meta is not None and request.meta.token is not None:
        _close_item(connection, request, request.meta.token)
        return
    try:
        if queue is None:
            queue = _queue(connection, request)
            if queue is not None:  # it may be new
                connection.expect_long()
        if queue is not None:
            _prepare(connection, request, queue)
    except UnavailableError as error:
        connection.out.append(server_error(error))
        return
    if queue is None or not request.fetches:
        _answer(connection, request, queue, None)
        return
    timeout_ms = request.timeout_ms
    _fetch_or_wait(
        connection, request, queue, connection.clients.loop.time() + timeout_ms / 1000 if timeout_ms else 0
    )


def _close_item(connection: "Connection", request: Request, token: int) -> None:
    """Remove one of the reserved items for good."""
    try:
        closed = connection.holds.close_item(request.queue, token)
    except JournalError as error:
        connection.out.append(server_error(error))
        return
    connection.counters.delete_hits += closed
    connection.counters.delete_misses += not closed
    connection.reply(request, DELETED if closed else NOT_FOUND)


def _fetch_or_wait(connection: "Connection", request: Request, queue: Source, deadline: float) -> None:
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
    connection: "Connection", request: Request, queue: Source, deadline: float, error: JournalError
) -> None:
    """Say why nothing can be fetched; or try again, if that will soon be of use."""
    if isinstance(error, MendingError):
        retry(connection, error, lambda: _fetch_or_wait(connection, request, queue, deadline))
    else:
        connection.out.append(server_error(error))


def retry(connection: "Connection", error: MendingError, again: Callable[[], None]) -> None:
    """Do it again once the queue is mended."""
    error.journal.held_back.append(connection)
    connection.hold()
    connection.go_on(again)


def _holds_too_many(connection: "Connection", request: Request) -> bool:
    """As `_must_close_first`, of what is held now."""
    if request.close or request.abort or request.peek or request.queue not in connection.holds.held:
        return False
    most = connection.broker.settings(request.queue).max_open_reads if request.open else 1
    return connection.holds.count(request.queue, most) >= most


def _must_close_first(connection: "Connection", request: Request, held: int) -> bool:
    """Whether `held` items of its queue stand in the way of a `get`."""
    if not held or request.close or request.abort or request.peek:
        return False
    return not request.open or held >= connection.broker.settings(request.queue).max_open_reads


def _queue(connection: "Connection", request: Request) -> Source | None:
    """The queue to fetch from, or where to wait for it; None if it is not there, or the name is an alias.
    What is held may be closed or aborted whatever the server's status."""
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


def _release(connection: "Connection", request: Request) -> None:
    """Close or abort what is held, as the options say."""
    if request.close:
        connection.holds.close(request.queue)
    elif request.abort:
        connection.holds.abort(request.queue)


def _prepare(connection: "Connection", request: Request, queue: Source) -> None:
    """Do what goes before a fetch: close or abort what is held, as the options say."""
    _release(connection, request)
    if request.open:
        queue.counts.transactions += 1


def _fetcher(request: Request, queue: Source) -> Callable[[Any], Item | None]:
    kind = type(queue)
    return kind.reserve if request.open else kind.peek if request.peek else kind.take


def _wait(connection: "Connection", request: Request, queue: Source, deadline: float) -> None:
    def end(queue: Source, item: Item | None) -> None:
        _answer(connection, request, queue, item, one_of_many=False, deadline=deadline)
        connection.end_wait()

    def fail(error: JournalError) -> None:
        connection.out.append(server_error(error))
        connection.end_wait()

    waiter = Waiter(_fetcher(request, queue), end, connection.has_gone, fail)
    queue.wait(waiter)
    timeout_ms = min(request.timeout_ms, int((deadline - connection.clients.loop.time()) * 1000) + 1)
    connection.begin_wait(waiter, max(0, timeout_ms), functools.partial(_time_out, waiter))


def _time_out(waiter: Waiter) -> None:
    waiter.cancel()
    waiter.deliver(waiter.queue, None)


def _answer(
    connection: "Connection",
    request: Request,
    queue: Source | None,
    item: Item | None,
    *,
    one_of_many: bool = False,
    deadline: float = 0,
) -> None:
    """Count and send what a fetch came to: the item and `END`, or `END` alone; no `END` if one of many."""
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
            connection.out.append(END if request.meta is None else request.meta.answer(END))
        return
    if request.open:
        connection.holds.add(queue, item)
    if request.meta is not None and not request.meta.wants_value:
        _send_line(connection, request, queue, item)
    elif item.record is None or item.size > LARGE_BYTES:
        send_large(Delivery(connection, request, queue, item, deadline, one_of_many=one_of_many))
        return
    else:
        send_item(connection, request, item, one_of_many=one_of_many, queue=queue)
    if request.open:
        queue.forget_data(item)


def _send_line(connection: "Connection", request: Request, queue: Source, item: Item) -> None:
    """Reply with what is asked of an item, which is not its data."""
    if item.record is None and not (request.open or request.peek):
        try:
            queue.close(item)
        except JournalError as error:
            queue.give_back(item)
            connection.out.append(server_error(error))
            return
    connection.out.append(_meta_line(request, queue, item))


def _meta_line(request: Request, queue: Source, item: Item) -> bytes:
    """Return the line that a meta command is answered with for an item."""
    owner = queue if isinstance(queue, Queue) else cast("Cursor", queue).queue
    now = owner.clock()
    left_s = owner.times.age_ms(now, item.expires_ms) // 1000 if item.expires_ms else -1
    age_s = owner.times.age_ms(item.enqueued_ms, now) // 1000
    meta = cast("Meta", request.meta)
    return meta.found(item.size, item.flags, item.id, item.attempts, left_s, age_s)


def _get_many(connection: "Connection", requests: list[Request], *, is_run: bool) -> None:
    """At most one item of each queue, in one reply; or in a part of one, if the keys of a long line come in
    runs. A queue out of service counts as empty, for an error among values cannot be told from the data
    behind it; the log has it."""
    connection.expect_long()
    held: dict[bytes, int] = {}
    for request in requests:
        count = held.get(request.queue)
        if count is None:
            count = connection.holds.count(request.queue)
        if _must_close_first(connection, request, count):
            connection.out.append(CLOSE_FIRST)
            if is_run:
                connection.skip_keys()
            return
        ends = (request.close or request.abort) and count > 0
        held[request.queue] = count - ends + request.open
    if any(request.fetches for request in requests):
        try:
            connection.broker.status.check_gets()
        except StatusError as error:
            connection.out.append(server_error(error))
            if is_run:
                connection.skip_keys()
            return
    _get_on(connection, iter(requests), is_run=is_run)


def _get_on(connection: "Connection", requests: Iterator[Request], *, is_run: bool) -> None:
    for request in requests:
        try:
            queue = connection.broker.sources.get(request.queue) or _queue(connection, request)
            if queue is not None:
                _prepare(connection, request, queue)
        except UnavailableError:
            continue
        if not _get_one_of(connection, request, queue, requests, is_run=is_run):
            return
    if not is_run:
        connection.out.append(END)


def _get_one_of(
    connection: "Connection",
    request: Request,
    queue: Source | None,
    rest: Iterator[Request],
    *,
    is_run: bool,
) -> bool:
    """Fetch the item that `request` asks for; returns whether the `rest` is seen to now, or later."""
    item = None
    try:
        if queue is not None and request.fetches:
            item = _fetcher(request, queue)(queue)
    except MendingError as error:

        def again() -> None:
            if _get_one_of(connection, request, queue, rest, is_run=is_run):
                _get_on(connection, rest, is_run=is_run)

        retry(connection, error, again)
        return False
    except JournalError:
        return True
    _answer(connection, request, queue, item, one_of_many=True)
    # a large item is sent before another is fetched: each may take a descriptor
    if connection.should_yield or (item is not None and item.record is None):
        connection.go_on(lambda: _get_on(connection, rest, is_run=is_run))
        return False
    return True


def send_item(
    connection: "Connection",
    request: Request,
    item: Item,
    *,
    one_of_many: bool = False,
    queue: Source | None = None,
) -> None:
    """Reply with an item, `END` behind it unless it is one of many. `queue` is where it is from, which a meta
    command wants."""
    if request.meta is None:
        reply = value(_key(connection, request), item, request.with_cas, not one_of_many)
    else:
        reply = b"%s%s\r\n" % (_meta_line(request, cast("Source", queue), item), item.data)
    connection.out.append(reply)
    connection.out_bytes += len(reply)


def _key(connection: "Connection", request: Request) -> bytes:
    """What a value goes by in a reply."""
    return request.queue.partition(b"/")[0] if connection.bare_keys else request.key


def send_large(delivery: "Delivery", *, one_of_many: bool = False) -> None:
    """As `send_item`, of an item whose bytes are in a file, or so many that they are not to be copied."""
    out = delivery.connection.out
    out.append(delivery.stream())
    if not (one_of_many or delivery.one_of_many):
        out.append(END if delivery.request.meta is None else b"")


class Delivery:
    """A large item on its way to a client. It is not removed, and nothing of it is sent, before all its bytes
    were found whole; if they are not, the item is put aside, and the next one is fetched in its place."""

    __slots__ = ("_deadline", "connection", "item", "one_of_many", "queue", "request")

    def __init__(
        self,
        connection: "Connection",
        request: Request,
        queue: Source,
        item: Item,
        deadline: float = 0,
        *,
        one_of_many: bool = False,
    ) -> None:
        self.connection = connection
        self.request = request
        self.queue = queue
        self.item = item
        self.one_of_many = one_of_many
        self._deadline = deadline

    def stream(self) -> "Stream":
        """Return the reply."""
        item, request = self.item, self.request
        if request.meta is not None:
            header = _meta_line(request, self.queue, item)
        else:
            header = _proto.value_header(
                _key(self.connection, request), item.flags, item.size, item.id if request.with_cas else 0
            )
        return self.connection.stream(header, self)

    def open(self) -> BlobReader:
        """Return the bytes of the item that are in a file, for its turn has come. JournalError if they cannot
        be had."""
        return self.queue.open_blob(self.item)

    def begin(self) -> None:
        """The item is whole, and about to be sent. JournalError if it cannot be removed."""
        if not (self.request.open or self.request.peek):
            self.queue.close(self.item)

    def give_up(self) -> None:
        """The item will not be sent."""
        if not self.request.open:  # what is held goes back by itself
            self.queue.give_back(self.item)

    def fail(self, error: JournalError) -> None:
        """The item cannot be read, or not be removed: have another reply in the place of this one, the first
        of `out`."""
        del self.connection.out[0]
        try:
            if not isinstance(error, DamagedItemError):
                self.queue.give_back(self.item)
                raise error
            self.queue.quarantine(self.item, error)
        except JournalError as failure:
            self.replace(failure)
        else:
            self.replace(None)

    def replace(self, error: JournalError | None) -> None:
        """Reply with the next item, or with the error."""
        connection, request = self.connection, self.request
        counters = connection.counters
        if request.peek:
            counters.cmd_peek -= 1
        else:
            counters.cmd_get -= 1
            counters.get_hits -= 1
        rest, connection.out[:] = connection.out[:], []
        if self.one_of_many:
            try:
                item = None if error is not None else _fetcher(request, self.queue)(self.queue)
            except JournalError:
                item = None
            _answer(connection, request, self.queue, item, one_of_many=True)
        else:
            del rest[0]  # its END
            if error is not None:
                connection.out.append(server_error(error))
            else:
                _fetch_or_wait(connection, request, self.queue, self._deadline)
        connection.out += rest
