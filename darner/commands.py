# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""What each verb does: one small function a verb, in a table.

A function takes the connection and the request, acts on the broker's queues, and puts its reply at the
end of `connection.out`. What it says is in the log by then; only a reply to a set that is synced is held
until the log is on the disk.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from darner import _proto
from darner._proto import Item, Request, Verb, value
from darner._version import __version__
from darner.config import QueueSettings
from darner.cursor import MARK
from darner.errors import (
    ConfigError,
    DamagedItemError,
    DarnerError,
    ItemTooLargeError,
    JournalError,
    MendingError,
    QueueFullError,
    StatusError,
    UnavailableError,
)
from darner.fanout import Fanout
from darner.figures import QUEUE_FIGURES, SERVER_FIGURES, read
from darner.queue import Queue, Source, Upload, Waiter
from darner.status import STATUSES

if TYPE_CHECKING:
    from darner.connection import Connection, Stream

END = b"END\r\n"
STORED = b"STORED\r\n"
NOT_STORED = b"NOT_STORED\r\n"
TOO_LARGE = b"SERVER_ERROR object too large for cache\r\n"
OK = b"OK\r\n"
BAD_FORMAT = b"CLIENT_ERROR bad command line format\r\n"
BAD_NAME = b"CLIENT_ERROR bad queue name: 1 to 250 bytes without space, control character or /\r\n"
BAD_STATUS = b"CLIENT_ERROR unknown status: up, readonly or quiescent\r\n"
NOTHING_RESERVED = b"ERROR\r\n"
NO_SHUTDOWN = b"CLIENT_ERROR shutdown is not allowed: allow_shutdown is not set\r\n"
CLOSE_FIRST = b"CLIENT_ERROR close current item first\r\n"

# How many items one `monitor` takes before others have their turn.
MONITORED_PER_TURN = 256

# memcached knows more levels; these are what a log has
LEVELS = {0: logging.WARNING, 1: logging.INFO}


def server_error(error: DarnerError) -> bytes:
    """The reply to a client whose request failed through no fault of its own."""
    return b"SERVER_ERROR " + " ".join(str(error).split()).encode(errors="replace") + b"\r\n"


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
    if queue is None or request.delay_ms:
        _set_elsewhere(connection, request)
        return
    try:
        queue.push(request.record, request.flags, request.exptime)
    except DarnerError as error:
        connection.reply(request, _not_stored(error), is_error=True)
        return
    connection.out.append(b"" if request.noreply else STORED)
    if request.sync or queue.syncs:
        connection.broker.sync((queue,), connection, len(connection.out) - 1, asked=request.sync)
    if queue.journal.crowded:
        _wait_for_room(connection, queue)


def _set_elsewhere(connection: "Connection", request: Request) -> None:
    """A set to a new queue, or to several, or for later."""
    record, flags, exptime, delay_ms = request.record, request.flags, request.exptime, request.delay_ms
    try:
        sink = connection.broker.sink(request.queue)
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
    connection.out.append(b"" if request.noreply else STORED)
    connection.broker.sync(queues, connection, len(connection.out) - 1, asked=request.sync)
    for queue in queues:
        if queue.journal.crowded:
            _wait_for_room(connection, queue)


def _wait_for_room(connection: "Connection", queue: Queue) -> None:
    queue.journal.crowding.append(connection)
    connection.hold()


def set_begin(connection: "Connection", request: Request) -> None:
    """As `set`, of an item too large for memory: its chunks follow."""
    connection.counters.cmd_set += 1
    try:
        connection.begin_upload(request, connection.broker.upload(request.queue, request.size))
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
    except UnavailableError as error:
        upload.abandon()
        connection.upload = error


def set_end(connection: "Connection", request: Request) -> None:
    """All chunks of the item begun have come."""
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
        _get_many(connection, [request, *request.rest])
        return
    holds = connection.holds
    if holds.held and _must_close_first(connection, request, holds.count(request.queue)):
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


def takes_item(request: Request) -> bool:
    """Whether a request removes an item for good that only its reply has then."""
    return request.verb in (Verb.GET, Verb.GETS) and any(
        each.fetches and not (each.open or each.peek) for each in (request, *(request.rest or ()))
    )


def _get_otherwise(connection: "Connection", request: Request, queue: Source | None) -> None:
    """A get with options, or of what is no queue yet, or more than that."""
    try:
        if queue is None:
            queue = _queue(connection, request)
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
        _retry(connection, error, lambda: _fetch_or_wait(connection, request, queue, deadline))
    else:
        connection.out.append(server_error(error))


def _retry(connection: "Connection", error: MendingError, again: Callable[[], None]) -> None:
    error.journal.crowding.append(connection)
    connection.hold()
    connection.go_on(again)


def _must_close_first(connection: "Connection", request: Request, held: int) -> bool:
    """Whether `held` items of its queue stand in the way of a `get`."""
    if not held or request.close or request.abort or request.peek:
        return False
    return not request.open or held >= connection.broker.settings(request.queue).max_open_reads


def _queue(connection: "Connection", request: Request) -> Source | None:
    """The queue to fetch from, made if it is not there, but for None where a peek need not wait for it, or
    the name is an alias. What is held may be closed or aborted whatever the server's status."""
    try:
        make = bool(request.timeout_ms) or not request.peek
        queue = connection.broker.source(request.queue, make=make)
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
        queue.transactions += 1


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

    def time_out() -> None:
        waiter.cancel()
        end(waiter.queue, None)

    timeout_ms = min(request.timeout_ms, int((deadline - connection.clients.loop.time()) * 1000) + 1)
    connection.begin_wait(waiter, max(0, timeout_ms), time_out)


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
            connection.out.append(END)
        return
    if request.open:
        connection.holds.add(queue, item)
    if item.record is None:
        send_large(Delivery(connection, request, queue, item, deadline, one_of_many=one_of_many))
    else:
        send_item(connection, request, item, one_of_many=one_of_many)


def _get_many(connection: "Connection", requests: list[Request]) -> None:
    """At most one item of each queue, in one reply. A queue out of service counts as empty, for an
    error among values cannot be told from the data behind it; the log has it."""
    held: dict[bytes, int] = {}
    for request in requests:
        count = held.get(request.queue)
        if count is None:
            count = connection.holds.count(request.queue)
        if _must_close_first(connection, request, count):
            connection.out.append(CLOSE_FIRST)
            return
        ends = (request.close or request.abort) and count > 0
        held[request.queue] = count - ends + request.open
    if any(request.fetches for request in requests):
        try:
            connection.broker.status.check_gets()
        except StatusError as error:
            connection.out.append(server_error(error))
            return
    _get_on(connection, iter(requests))


def _get_on(connection: "Connection", requests: Iterator[Request]) -> None:
    for request in requests:
        try:
            queue = connection.broker.sources.get(request.queue) or _queue(connection, request)
            item = None
            if queue is not None:
                _prepare(connection, request, queue)
                item = _fetcher(request, queue)(queue) if request.fetches else None
        except JournalError:
            continue
        _answer(connection, request, queue, item, one_of_many=True)
        if connection.has_much_to_send:
            connection.go_on(lambda: _get_on(connection, requests))
            return
    connection.out.append(END)


def send_item(connection: "Connection", request: Request, item: Item, *, one_of_many: bool = False) -> None:
    """Reply with an item, `END` behind it unless it is one of many."""
    reply = value(_key(connection, request), item, request.with_cas, not one_of_many)
    connection.out.append(reply)
    connection.out_bytes += len(reply)


def _key(connection: "Connection", request: Request) -> bytes:
    """What a value goes by in a reply."""
    return request.queue.partition(b"/")[0] if connection.bare_keys else request.key


def send_large(delivery: "Delivery", *, one_of_many: bool = False) -> None:
    """As `send_item`, of an item whose bytes are in a file."""
    out = delivery.connection.out
    out.append(delivery.stream())
    if not (one_of_many or delivery.one_of_many):
        out.append(END)


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
        header = _proto.value_header(
            _key(self.connection, request), item.flags, item.size, item.id if request.with_cas else 0
        )
        return self.connection.stream(self.queue.open_blob(item), header, self)

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


# Reserving several


def monitor(connection: "Connection", request: Request) -> None:
    """`monitor <queue> <seconds> [<max>]`: reserve items as they come."""
    name, *numbers = request.args or [b""]
    if not 1 <= len(numbers) <= 2 or not all(number.isdigit() and len(number) < 10 for number in numbers):
        connection.out.append(BAD_FORMAT)
        return
    if not _proto.valid_name(name):
        connection.out.append(BAD_NAME)
        return
    seconds, *given = map(int, numbers)
    max_open_reads = connection.broker.settings(name).max_open_reads
    most = given[0] if given else max_open_reads
    left = min(most, max(most, max_open_reads) - connection.holds.count(name))
    Monitor(connection, request, seconds, left).go_on()


def _reserve(queue: Source) -> Item | None:
    return queue.reserve()


class Monitor:
    """A `monitor` under way. Who waits for an item gets one, and then queues up anew behind the others."""

    __slots__ = ("_connection", "_deadline", "_error", "_left", "_request", "_waiter")

    def __init__(self, connection: "Connection", request: Request, seconds: int, left: int) -> None:
        self._connection = connection
        self._request = request
        self._deadline = connection.clients.loop.time() + seconds
        # how many more items may come, and why none does
        self._left = left
        self._error: UnavailableError | None = None
        self._waiter = Waiter(_reserve, self._deliver, connection.has_gone, self._fail)

    def go_on(self) -> None:
        """Send what is there; then wait for more, or end."""
        connection = self._connection
        out = connection.out
        try:
            given = 0
            while self._left > 0 and connection.clients.loop.time() < self._deadline:
                queue = connection.broker.source(self._request.queue, make=True)
                if queue is None:
                    break
                item = queue.reserve()
                if item is None:
                    self._wait(queue)
                    return
                given += 1
                if self._send(queue, item) or given == MONITORED_PER_TURN:
                    connection.go_on(self.go_on)
                    return
        except MendingError as error:
            _retry(connection, error, self.go_on)
            return
        except UnavailableError as error:
            self._error = error
        out.append(END if self._error is None else server_error(self._error))

    def _wait(self, queue: Source) -> None:
        queue.wait(self._waiter)
        timeout_ms = max(0, int((self._deadline - self._connection.clients.loop.time()) * 1000))
        self._connection.begin_wait(self._waiter, timeout_ms, self._time_out)

    def _time_out(self) -> None:
        self._waiter.cancel()
        self._connection.out.append(END)
        self._connection.end_wait()

    def _fail(self, error: JournalError) -> None:
        self._connection.out.append(server_error(error))
        self._connection.end_wait()

    def _deliver(self, queue: Source, item: Item) -> None:
        connection = self._connection
        connection.end_wait()
        if self._send(queue, item):
            connection.go_on(self.go_on)
        elif self._left > 0:
            self._wait(queue)
        else:
            connection.out.append(END)

    def _send(self, queue: Source, item: Item) -> bool:
        """Send an item just reserved; returns whether that should go out before more is taken."""
        connection = self._connection
        counters = connection.counters
        counters.cmd_get += 1
        counters.get_hits += 1
        queue.transactions += 1
        connection.holds.add(queue, item)
        self._left -= 1
        if item.record is None:
            send_large(MonitoredDelivery(self, connection, self._request, queue, item))
            return True
        send_item(connection, self._request, item)
        return connection.has_much_to_send

    def miss(self, error: JournalError | None) -> None:
        """An item just sent was not to be had: go on with the next, or end with the error."""
        self._left = 0 if error is not None else self._left + 1
        self._error = error


class MonitoredDelivery(Delivery):
    """As `Delivery`, to a `monitor`: the item is reserved."""

    __slots__ = ("_monitor",)

    def __init__(
        self, monitor: Monitor, connection: "Connection", request: Request, queue: Source, item: Item
    ) -> None:
        super().__init__(connection, request, queue, item)
        self._monitor = monitor

    def begin(self) -> None:
        """The item is whole, and about to be sent."""

    def give_up(self) -> None:
        """The item will not be sent; what is held goes back by itself."""

    def replace(self, error: JournalError | None) -> None:
        """Have the monitor go on."""
        counters = self.connection.counters
        counters.cmd_get -= 1
        counters.get_hits -= 1
        del self.connection.out[0]  # its END
        self._monitor.miss(error)


def confirm(connection: "Connection", request: Request) -> None:
    """`confirm <queue> <count>`: remove those of the reserved items that were reserved first."""
    args = request.args
    if len(args) != 2 or not args[1].isdigit() or len(args[1]) > 9:
        connection.out.append(BAD_FORMAT)
        return
    try:
        closed = connection.holds.close(args[0], int(args[1]))
    except JournalError as error:
        connection.out.append(server_error(error))
        return
    connection.out.append(END if closed else NOTHING_RESERVED)


# Managing


def delete(connection: "Connection", request: Request) -> None:
    """`delete <queue>`; memcached's old time argument is taken if it is 0."""
    args = request.args
    if not 1 <= len(args) <= 2 or args[1:] not in ([], [b"0"]):
        connection.reply(request, BAD_FORMAT, is_error=True)
    elif not all(map(_proto.valid_name, args[0].split(MARK, 1))):
        connection.reply(request, BAD_NAME, is_error=True)
    else:
        try:
            connection.broker.status.check_sets()
            connection.broker.delete(args[0])
        except UnavailableError as error:
            connection.reply(request, server_error(error), is_error=True)
            return
        connection.reply(request, b"DELETED\r\n")
        connection.broker.reap()


def flush(connection: "Connection", request: Request) -> None:
    """`flush <queue>`."""
    args = request.args
    if len(args) != 1:
        connection.reply(request, BAD_FORMAT, is_error=True)
    elif not _proto.valid_name(args[0]):
        connection.reply(request, BAD_NAME, is_error=True)
    else:
        try:
            connection.broker.status.check_sets()
            queue = connection.broker.find(args[0])
            if queue is not None:
                queue.flush()
        except UnavailableError as error:
            connection.reply(request, server_error(error), is_error=True)
            return
        connection.reply(request, END)


def flush_all(connection: "Connection", request: Request) -> None:
    """`flush_all [<seconds>]`: now, or so many seconds from now."""
    args = request.args
    if len(args) > 1 or not all(arg.isdigit() and len(arg) < 10 for arg in args):
        connection.reply(request, BAD_FORMAT, is_error=True)
        return
    try:
        connection.broker.status.check_sets()
    except StatusError as error:
        connection.reply(request, server_error(error), is_error=True)
        return
    delay_s = int(args[0]) if args else 0
    reply = b"Flushed all queues.\r\n" if connection.bare_keys else OK
    if delay_s:
        connection.clients.flush_all_later(delay_s)
        connection.reply(request, reply)
        return
    connection.clients.flush_all_later(None)
    failures = connection.broker.flush_all()
    if failures:
        connection.reply(request, server_error(failures[0]), is_error=True)
        return
    connection.reply(request, reply)


def flush_expired(connection: "Connection", request: Request) -> None:
    """`flush_expired <queue>`: the reply is how many items had expired."""
    args = request.args
    if len(args) != 1:
        connection.reply(request, BAD_FORMAT, is_error=True)
    elif not _proto.valid_name(args[0]):
        connection.reply(request, BAD_NAME, is_error=True)
    else:
        try:
            connection.broker.status.check_sets()
            queue = connection.broker.find(args[0])
        except UnavailableError as error:
            connection.reply(request, server_error(error), is_error=True)
            return
        _flush_expired(connection, request, [queue] if queue is not None else [], [])


def flush_all_expired(connection: "Connection", request: Request) -> None:
    """`flush_all_expired`: as `flush_expired`, of all queues."""
    if request.args:
        connection.reply(request, BAD_FORMAT, is_error=True)
        return
    broker = connection.broker
    try:
        broker.status.check_sets()
    except StatusError as error:
        connection.reply(request, server_error(error), is_error=True)
        return
    _flush_expired(connection, request, list(broker.queues.values()), list(broker.broken.values()))


def _flush_expired(
    connection: "Connection", request: Request, queues: list[Queue], failures: list[JournalError]
) -> None:
    total = 0

    def slices() -> Iterator[int]:
        for queue in queues:
            while True:
                try:
                    yield from queue.flush_expired()
                except MendingError as error:
                    error.journal.crowding.append(connection)
                    connection.hold()
                    yield 0
                    continue
                except JournalError as error:
                    failures.append(error)
                break

    def go_on() -> None:
        nonlocal total
        count = next(counts, None)
        if count is not None:
            total += count
            connection.go_on(go_on)
        elif failures:
            connection.reply(request, server_error(failures[0]), is_error=True)
        else:
            connection.reply(request, b"%d\r\n" % total)

    counts = slices()
    go_on()


def version(connection: "Connection", request: Request) -> None:
    """`version`."""
    connection.reply(request, f"VERSION {__version__}\r\n".encode())


def verbosity(connection: "Connection", request: Request) -> None:
    """`verbosity <n>`: 0 logs warnings, 1 what happens, 2 and more all there is."""
    args = request.args
    if len(args) != 1 or not args[0].isdigit() or len(args[0]) > 9:
        connection.reply(request, BAD_FORMAT, is_error=True)
        return
    logging.getLogger().setLevel(LEVELS.get(int(args[0]), logging.DEBUG))
    connection.reply(request, OK)


def stats(connection: "Connection", request: Request) -> None:
    """`stats`, and `stats reset`; about anything else there is nothing to say."""
    if request.args == [b"reset"]:
        connection.counters.reset()
        connection.broker.reset_stats()
        connection.reply(request, b"RESET\r\n")
        return
    if not request.args:
        lines = (f"STAT {k} {v}\r\n".encode() for k, v in read(SERVER_FIGURES, connection.clients))
        connection.reply(request, b"".join(lines))
        for name, queue in sorted(connection.broker.queues.items()):
            prefix = b"STAT queue_" + name + b"_"
            lines = (prefix + f"{k} {v}\r\n".encode() for k, v in read(QUEUE_FIGURES, queue))
            connection.reply(request, b"".join(lines))
    connection.reply(request, END)


# The connection's own


def dump_stats(connection: "Connection", request: Request) -> None:
    """`dump_stats [<queue>…]`: what `stats` says of these queues, or of all, with their children."""
    broker = connection.broker
    for name in request.args or sorted({*broker.queues, *broker.aliases}):
        queue = broker.find(name) if name not in broker.broken else None
        _dump(
            connection,
            request,
            name,
            read(QUEUE_FIGURES, queue) if queue is not None else (),
            broker.children(name),
        )
    connection.reply(request, END)


def dump_config(connection: "Connection", request: Request) -> None:
    """`dump_config [<queue>…]`: the settings in force of these queues, or of all."""
    broker = connection.broker
    for name in request.args or sorted(broker.queues):
        settings = broker.settings(name)
        if name in broker.queues:
            settings = msgspec.structs.replace(settings, durable=broker.queues[name].is_durable)
        _dump(connection, request, name, _describe(settings))
    connection.reply(request, END)


def _describe(settings: QueueSettings) -> Iterator[tuple[str, str]]:
    """The settings of a queue as they may stand in the configuration."""
    for field, setting in msgspec.structs.asdict(settings).items():
        key = field.removesuffix("_ms")
        if key == "sync" and not setting:
            yield key, "never" if setting is None else "always"
        elif setting is None:
            yield key, "none"
        elif isinstance(setting, bool):
            yield key, str(setting).lower()
        else:
            yield key, f"{setting}ms" if key != field else str(setting)


def _dump(
    connection: "Connection",
    request: Request,
    name: bytes,
    lines: Iterable[tuple[str, object]],
    children: Sequence[bytes] = (),
) -> None:
    reply = b"queue '%s' {\r\n" % name + b"".join(f"  {k}={v}\r\n".encode() for k, v in lines)
    if children:
        reply += b"  children=%s\r\n" % b",".join(children)
    connection.reply(request, reply + b"}\r\n")


def status(connection: "Connection", request: Request) -> None:
    """`status [up|readonly|quiescent]`: say or change what the server lets clients do."""
    args = request.args
    broker = connection.broker
    if not args:
        connection.reply(request, broker.status.name.upper().encode() + b"\r\n")
        return
    name = args[0].lower().decode(errors="replace")
    if len(args) > 1 or name not in STATUSES:
        connection.reply(request, BAD_STATUS, is_error=True)
        return
    try:
        broker.set_status(STATUSES.index(name))
    except JournalError as error:
        connection.reply(request, server_error(error), is_error=True)
        return
    connection.reply(request, END)


def reload(connection: "Connection", request: Request) -> None:
    """`reload`: read the configuration again."""
    try:
        connection.clients.reload()
    except ConfigError as error:
        connection.reply(request, server_error(error), is_error=True)
        return
    connection.reply(request, b"Reloaded config.\r\n")


def shutdown(connection: "Connection", request: Request) -> None:
    """`shutdown`: end the server as SIGTERM does, if that is allowed."""
    if connection.clients.shutdown is None:
        connection.reply(request, NO_SHUTDOWN, is_error=True)
        return
    connection.finish()
    connection.clients.shutdown()


def quit_(connection: "Connection", _: Request) -> None:
    """`quit`."""
    connection.finish()


def refused(connection: "Connection", request: Request) -> None:
    """What the parser has found wrong."""
    connection.reply(request, request.error, is_error=True)


def fatal(connection: "Connection", request: Request) -> None:
    """As `refused`, and the next request cannot be found."""
    connection.reply(request, request.error, is_error=True)
    connection.finish(linger=True)


def binary(connection: "Connection", _: Request) -> None:
    """The client speaks the binary protocol."""
    connection.clients.log_binary(connection)
    connection.finish()


COMMANDS: dict[int, Callable[["Connection", Request], None]] = {
    Verb.GET: get,
    Verb.GETS: get,
    Verb.SET: set_,
    Verb.SET_BEGIN: set_begin,
    Verb.SET_CHUNK: set_chunk,
    Verb.SET_END: set_end,
    Verb.REFUSED: refused,
    Verb.FATAL: fatal,
    Verb.BINARY: binary,
    Verb.DELETE: delete,
    Verb.FLUSH: flush,
    Verb.FLUSH_ALL: flush_all,
    Verb.FLUSH_EXPIRED: flush_expired,
    Verb.FLUSH_ALL_EXPIRED: flush_all_expired,
    Verb.STATS: stats,
    Verb.VERSION: version,
    Verb.VERBOSITY: verbosity,
    Verb.DUMP_STATS: dump_stats,
    Verb.DUMP_CONFIG: dump_config,
    Verb.STATUS: status,
    Verb.RELOAD: reload,
    Verb.SHUTDOWN: shutdown,
    Verb.MONITOR: monitor,
    Verb.CONFIRM: confirm,
    Verb.QUIT: quit_,
}
# by number, which is what a request has
TABLE = [COMMANDS[verb] for verb in sorted(Verb)]
