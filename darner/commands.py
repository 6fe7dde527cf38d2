"""What each verb does: one small function a verb, in a table.

A function takes the connection and the request, acts on the broker's queues, and puts its reply at the
end of `connection.out`. A reply that promises something about the disk is tied to the queue's next
commit by `Queue.acknowledge`; the connection sends nothing before that.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from darner import _proto
from darner._proto import Item, Request, Verb
from darner._version import __version__
from darner.errors import DarnerError, ItemTooLargeError, JournalError, QueueFullError
from darner.queue import Queue, Upload, Waiter

if TYPE_CHECKING:
    from darner.connection import Connection

END = b"END\r\n"
STORED = b"STORED\r\n"
NOT_STORED = b"NOT_STORED\r\n"
TOO_LARGE = b"SERVER_ERROR object too large for cache\r\n"
OK = b"OK\r\n"
BAD_FORMAT = b"CLIENT_ERROR bad command line format\r\n"
BAD_NAME = b"CLIENT_ERROR bad queue name: 1 to 250 bytes without space, control character or /\r\n"
CLOSE_FIRST = b"CLIENT_ERROR close current item first\r\n"

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
    broker = connection.broker
    try:
        queue = broker.queues.get(request.queue) or broker.queue(request.queue)
        if request.delay_ms:
            queue.push_delayed(
                request.data, request.flags, request.exptime, request.delay_ms, sync=request.sync
            )
        else:
            queue.push(request.data, request.flags, request.exptime, sync=request.sync)
    except DarnerError as error:
        connection.reply(request, _not_stored(error), is_error=True)
        return
    _stored(connection, queue, request)


def _stored(connection: "Connection", queue: Queue, request: Request) -> None:
    out = connection.out
    out.append(b"" if request.noreply else STORED)
    queue.acknowledge(connection, len(out) - 1)


def set_begin(connection: "Connection", request: Request) -> None:
    """As `set`, of an item too large for memory: its chunks follow."""
    connection.counters.cmd_set += 1
    try:
        connection.begin_upload(request, connection.broker.queue(request.queue).upload(request.size))
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
    except JournalError as error:
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
            _stored(connection, upload.queue, begin)
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
    if connection.holds and _must_close_first(connection, request, connection.holds.count(request.queue)):
        connection.out.append(CLOSE_FIRST)
        return
    broker = connection.broker
    try:
        queue = broker.queues.get(request.queue) or _queue(connection, request)
        if queue is None:
            connection.counters.cmd_peek += 1
            connection.out.append(END)
            return
        item = _fetch(connection, request, queue) if request.options else queue.pop()
    except JournalError as error:
        connection.out.append(server_error(error))
        return
    if item is None and request.timeout_ms and request.fetches:
        _wait(connection, request, queue)
    else:
        _answer(connection, request, queue, item)


def _must_close_first(connection: "Connection", request: Request, held: int) -> bool:
    """Whether `held` items of its queue stand in the way of a `get`."""
    if not held or request.close or request.abort or request.peek:
        return False
    return not request.open or held >= connection.broker.settings(request.queue).max_open_reads


def _queue(connection: "Connection", request: Request) -> Queue | None:
    """The queue to fetch from, made if it is not there, but for None where a peek need not wait for it."""
    broker = connection.broker
    queue = broker.queues.get(request.queue)
    if queue is None and (request.timeout_ms or not request.peek or request.queue in broker.broken):
        queue = broker.queue(request.queue)
    return queue


def _fetch(connection: "Connection", request: Request, queue: Queue) -> Item | None:
    """Close or abort what is held, then fetch, as the options say."""
    if request.close:
        connection.holds.close(request.queue)
    elif request.abort:
        connection.holds.abort(request.queue)
    if request.open:
        queue.transactions += 1
    return _fetcher(request)(queue) if request.fetches else None


def _fetcher(request: Request) -> Callable[[Queue], Item | None]:
    return Queue.reserve if request.open else Queue.peek if request.peek else Queue.pop


def _wait(connection: "Connection", request: Request, queue: Queue) -> None:
    def end(queue: Queue, item: Item | None) -> None:
        _answer(connection, request, queue, item)
        connection.end_wait()

    waiter = Waiter(_fetcher(request), end, connection.has_gone)
    queue.wait(waiter)

    def time_out() -> None:
        waiter.cancel()
        end(waiter.queue, None)

    connection.begin_wait(waiter, request.timeout_ms, time_out)


def _answer(
    connection: "Connection", request: Request, queue: Queue, item: Item | None, *, one_of_many: bool = False
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
    if item is not None:
        if request.open:
            connection.holds.add(queue, item)
        send_item(connection, request, queue, item, one_of_many=one_of_many)
        return
    out = connection.out
    out.append(b"" if one_of_many else END)
    if request.close:
        queue.acknowledge(connection, ~(len(out) - 1) if one_of_many else len(out) - 1)


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
    _get_on(connection, iter(requests))


def _get_on(connection: "Connection", requests: Iterator[Request]) -> None:
    for request in requests:
        try:
            queue = _queue(connection, request)
            item = _fetch(connection, request, queue) if queue is not None else None
        except JournalError:
            continue
        if queue is None:
            connection.counters.cmd_peek += 1
            continue
        _answer(connection, request, queue, item, one_of_many=True)
        if connection.has_much_to_send:
            connection.go_on(lambda: _get_on(connection, requests))
            return
    connection.out.append(END)


def send_item(
    connection: "Connection", request: Request, queue: Queue, item: Item, *, one_of_many: bool = False
) -> None:
    """Reply with an item, `END` behind it unless it is one of many."""
    out = connection.out
    key = request.queue if connection.bare_keys else request.key
    cas = item.id if request.with_cas else 0
    slot = len(out)
    if item.data is None:
        header = _proto.value_header(key, item.flags, item.size, cas)
        out.append(connection.stream(queue.open_blob(item), header))
        if not one_of_many:
            out.append(END)
    else:
        reply = _proto.value(key, item.flags, item.data, cas, not one_of_many)
        out.append(reply)
        connection.out_bytes += len(reply)
    # a part of a longer reply is left out if it fails: its slot goes as its complement
    queue.acknowledge(connection, ~slot if one_of_many else slot)


# Managing


def delete(connection: "Connection", request: Request) -> None:
    """`delete <queue>`; memcached's old time argument is taken if it is 0."""
    args = request.args
    if not 1 <= len(args) <= 2 or args[1:] not in ([], [b"0"]):
        connection.reply(request, BAD_FORMAT, is_error=True)
    elif not _proto.valid_name(args[0]):
        connection.reply(request, BAD_NAME, is_error=True)
    else:
        try:
            journal = connection.broker.delete(args[0])
        except JournalError as error:
            connection.reply(request, server_error(error), is_error=True)
            return
        connection.reply(request, b"DELETED\r\n")
        if journal is not None:
            journal.acknowledge(connection, len(connection.out) - 1)
            connection.turn.reap()


def flush(connection: "Connection", request: Request) -> None:
    """`flush <queue>`."""
    args = request.args
    if len(args) != 1:
        connection.reply(request, BAD_FORMAT, is_error=True)
    elif not _proto.valid_name(args[0]):
        connection.reply(request, BAD_NAME, is_error=True)
    else:
        try:
            queue = connection.broker.find(args[0])
            if queue is not None:
                queue.flush()
        except JournalError as error:
            connection.reply(request, server_error(error), is_error=True)
            return
        connection.reply(request, END)
        if queue is not None:
            queue.acknowledge(connection, len(connection.out) - 1)


def flush_all(connection: "Connection", request: Request) -> None:
    """`flush_all [<seconds>]`: now, or so many seconds from now."""
    args = request.args
    if len(args) > 1 or not all(arg.isdigit() and len(arg) < 10 for arg in args):
        connection.reply(request, BAD_FORMAT, is_error=True)
        return
    delay_s = int(args[0]) if args else 0
    reply = b"Flushed all queues.\r\n" if connection.bare_keys else OK
    if delay_s:
        connection.turn.flush_all_later(delay_s)
        connection.reply(request, reply)
        return
    connection.turn.flush_all_later(None)
    failures = connection.broker.flush_all()
    if failures:
        connection.reply(request, server_error(failures[0]), is_error=True)
        return
    connection.reply(request, reply)
    slot = len(connection.out) - 1
    for queue in connection.broker.queues.values():
        queue.acknowledge(connection, slot)


def flush_expired(connection: "Connection", request: Request) -> None:
    """`flush_expired <queue>`: the reply is how many items had expired."""
    args = request.args
    if len(args) != 1:
        connection.reply(request, BAD_FORMAT, is_error=True)
    elif not _proto.valid_name(args[0]):
        connection.reply(request, BAD_NAME, is_error=True)
    else:
        try:
            queue = connection.broker.find(args[0])
        except JournalError as error:
            connection.reply(request, server_error(error), is_error=True)
            return
        _flush_expired(connection, request, [queue] if queue is not None else [], [])


def flush_all_expired(connection: "Connection", request: Request) -> None:
    """`flush_all_expired`: as `flush_expired`, of all queues."""
    if request.args:
        connection.reply(request, BAD_FORMAT, is_error=True)
        return
    broker = connection.broker
    _flush_expired(connection, request, list(broker.queues.values()), list(broker.broken.values()))


def _flush_expired(
    connection: "Connection", request: Request, queues: list[Queue], failures: list[JournalError]
) -> None:
    total = 0

    def slices() -> Iterator[int]:
        for queue in queues:
            try:
                for count in queue.flush_expired():
                    connection.broker.move([queue])
                    yield count
            except JournalError as error:
                failures.append(error)

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
            for queue in queues:
                queue.acknowledge(connection, len(connection.out) - 1)

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
        lines = (f"STAT {name} {value}\r\n".encode() for name, value in _stats(connection))
        connection.reply(request, b"".join(lines))
        for name, queue in sorted(connection.broker.queues.items()):
            prefix = b"STAT queue_" + name + b"_"
            connection.reply(
                request, b"".join(prefix + f"{k} {v}\r\n".encode() for k, v in _queue_stats(queue))
            )
    connection.reply(request, END)


def _stats(connection: "Connection") -> Iterator[tuple[str, int | str]]:
    broker, counters, turn = connection.broker, connection.counters, connection.turn
    _, items, size = broker.totals()
    yield "pid", os.getpid()
    yield "uptime", int(turn.uptime_s())
    yield "time", int(time.time())
    yield "version", __version__
    yield "curr_items", items
    yield "total_items", broker.total_items
    yield "bytes", size
    yield "curr_connections", len(turn.connections)
    yield "total_connections", counters.total_connections
    yield "cmd_get", counters.cmd_get
    yield "cmd_set", counters.cmd_set
    yield "cmd_peek", counters.cmd_peek
    yield "get_hits", counters.get_hits
    yield "get_misses", counters.get_misses
    yield "bytes_read", counters.bytes_read
    yield "bytes_written", counters.bytes_written
    yield "queue_creates", broker.queue_creates
    yield "queue_deletes", broker.queue_deletes
    yield "queue_expires", broker.queue_expires
    yield "noreply_errors", counters.noreply_errors


def _queue_stats(queue: Queue) -> Iterator[tuple[str, int]]:
    yield "items", queue.items
    yield "bytes", queue.waiting_bytes
    yield "total_items", queue.total_items
    yield "logsize", queue.journal.disk_bytes
    yield "expired_items", queue.expired_items
    yield "mem_items", len(queue.window)
    yield "mem_bytes", sum(item.memory_bytes for item in queue.window)
    yield "age", queue.age_ms
    yield "discarded", queue.discarded
    yield "waiters", len(queue.waiters)
    yield "open_transactions", queue.open_transactions
    yield "transactions", queue.transactions
    yield "canceled_transactions", queue.canceled_transactions
    yield "total_flushes", queue.total_flushes
    yield "create_time", queue.journal.state.created_ms
    if queue.delayed_items:
        yield "delayed_items", queue.delayed_items


# The connection's own


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
    connection.turn.log_binary(connection)
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
    Verb.QUIT: quit_,
}
# by number, which is what a request has
TABLE = [COMMANDS[verb] for verb in sorted(Verb)]
