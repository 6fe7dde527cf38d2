# cython: language_level=3, annotation_typing=False
"""What each verb does: one small function a verb, in a table.

A function takes the connection and the request, acts on the broker's queues, and puts its reply at the
end of `connection.out`. What it says is in the log by then; only a reply to a set with `/sync` is held until the
log is on the disk.
"""

import logging
from collections.abc import Callable, Container, Iterator
from typing import TYPE_CHECKING

from darner import _proto
from darner._proto import Item, Request, Verb, value
from darner._version import __version__
from darner.errors import JournalError
from darner.figures import QUEUE_FIGURES, SERVER_FIGURES, read
from darner.queue import Queue, Upload, Waiter

if TYPE_CHECKING:
    from darner.connection import Connection

END = b"END\r\n"
STORED = b"STORED\r\n"
OK = b"OK\r\n"
BAD_FORMAT = b"CLIENT_ERROR bad command line format\r\n"
BAD_NAME = b"CLIENT_ERROR bad queue name: 1 to 250 bytes without space, control character or /\r\n"
CLOSE_FIRST = b"CLIENT_ERROR close current item first\r\n"

# memcached knows more levels; these are what a log has
LEVELS = {0: logging.WARNING, 1: logging.INFO}


def server_error(error: JournalError) -> bytes:
    """The reply to a client whose request failed through no fault of its own."""
    return b"SERVER_ERROR " + " ".join(str(error).split()).encode(errors="replace") + b"\r\n"


# Storing


def set_(connection: "Connection", request: Request) -> None:
    """`set <queue>[/sync] <flags> <exptime> <bytes> [noreply]`, its data in memory."""
    connection.counters.cmd_set += 1
    broker = connection.broker
    try:
        queues = broker.queues
        queue = queues.get(request.queue) or broker.queue(request.queue)
        queue.push(request.record, request.flags, request.exptime)
    except JournalError as error:
        connection.reply(request, server_error(error), is_error=True)
        return
    _stored(connection, queue, request)


def _stored(connection: "Connection", queue: Queue, request: Request) -> None:
    connection.out.append(b"" if request.noreply else STORED)
    if request.sync:
        connection.broker.log.sync(connection, len(connection.out) - 1)
    if queue.journal.crowded:
        queue.journal.crowding.append(connection)
        connection.hold()


def set_begin(connection: "Connection", request: Request) -> None:
    """As `set`, of an item too large for memory: its chunks follow."""
    connection.counters.cmd_set += 1
    try:
        connection.begin_upload(request, connection.broker.queue(request.queue).upload())
    except JournalError as error:
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
    if isinstance(upload, JournalError):
        connection.reply(request, server_error(upload), is_error=True)
        return

    def done(error: JournalError | None) -> None:
        if error is None:
            _stored(connection, upload.queue, begin)
        else:
            connection.reply(begin, server_error(error), is_error=True)
        connection.end_finish()

    connection.begin_finish()
    upload.finish(begin.flags, begin.exptime, done, sync=begin.sync)


# Fetching


def get(connection: "Connection", request: Request) -> None:
    """`get <queue>[/option]*` and `gets`, of one queue or several."""
    if request.rest is not None:
        _get_many(connection, [request, *request.rest])
        return
    if connection.holds and _must_close_first(request, connection.holds):
        connection.out.append(CLOSE_FIRST)
        return
    broker = connection.broker
    try:
        queues = broker.queues
        queue = queues.get(request.queue) or _queue(connection, request)
        if queue is None:
            connection.counters.cmd_peek += 1
            connection.out.append(END)
            return
        item = _fetch(connection, request, queue) if request.has_options else queue.pop()
    except JournalError as error:
        connection.out.append(server_error(error))
        return
    if item is None and request.timeout_ms and request.fetches:
        _wait(connection, request, queue)
    else:
        _answer(connection, request, queue, item)


def _must_close_first(request: Request, held: Container[bytes]) -> bool:
    return request.queue in held and not (request.close or request.abort or request.peek)


def _queue(connection: "Connection", request: Request) -> Queue | None:
    """The queue to fetch from, made if it is not there, but for None where a peek need not wait for it."""
    broker = connection.broker
    queue = broker.queues.get(request.queue)
    if queue is None and (request.timeout_ms or not request.peek or request.queue in broker.broken):
        queue = broker.queue(request.queue)
    return queue


def _fetch(connection: "Connection", request: Request, queue: Queue) -> Item | None:
    """Close or abort what is held, then fetch, as the options say."""
    if (request.close or request.abort) and request.queue in connection.holds:
        held_queue, held = connection.holds[request.queue]
        if request.close:
            held_queue.close(held)
        else:
            held_queue.abort(held)
        del connection.holds[request.queue]
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
    if item is None:
        if not one_of_many:
            connection.out.append(END)
        return
    if request.open:
        connection.holds[request.queue] = (queue, item)
    send_item(connection, request, queue, item, one_of_many=one_of_many)


def _get_many(connection: "Connection", requests: list[Request]) -> None:
    """At most one item of each queue, in one reply. A queue out of service counts as empty, for an
    error among values cannot be told from the data behind it; the log has it."""
    held = set(connection.holds)
    for request in requests:
        if _must_close_first(request, held):
            connection.out.append(CLOSE_FIRST)
            return
        if request.close or request.abort:
            held.discard(request.queue)
        if request.open:
            held.add(request.queue)
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
    if item.record is None:
        header = _proto.value_header(key, item.flags, item.size, item.id if request.with_cas else 0)
        out.append(connection.stream(queue.open_blob(item), header))
        if not one_of_many:
            out.append(END)
    else:
        reply = value(key, item, request.with_cas, not one_of_many)
        out.append(reply)
        connection.out_bytes += len(reply)


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
            connection.broker.delete(args[0])
        except JournalError as error:
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
            queue = connection.broker.find(args[0])
            if queue is not None:
                queue.flush()
        except JournalError as error:
            connection.reply(request, server_error(error), is_error=True)
            return
        connection.reply(request, END)


def flush_all(connection: "Connection", request: Request) -> None:
    """`flush_all [<seconds>]`: now, or so many seconds from now."""
    args = request.args
    if len(args) > 1 or not all(arg.isdigit() and len(arg) < 10 for arg in args):
        connection.reply(request, BAD_FORMAT, is_error=True)
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
    Verb.STATS: stats,
    Verb.VERSION: version,
    Verb.VERBOSITY: verbosity,
    Verb.QUIT: quit_,
}
# by number, which is what a request has
TABLE = [COMMANDS[verb] for verb in sorted(Verb)]
