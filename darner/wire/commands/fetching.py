# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""The commands `get` and `gets`, and `mg` and `md` as the parser makes fetches of them.

Here is what a `get` of one queue goes through that is answered at once. The rest is in rooms below, which are
lent the steps that they share with it.
"""

import functools
from collections.abc import Callable

from darner._proto import Request, value
from darner._records import CHUNK_BYTES, Item
from darner.errors import JournalError, NotReadyError, StatusError, UnavailableError
from darner.queues.cursor import MARK
from darner.queues.pending import Pending
from darner.queues.queue import Queue
from darner.queues.waiters import Source
from darner.wire.commands.any_get import get_any
from darner.wire.commands.large_get import FetchDelivery
from darner.wire.commands.many_gets import get_many
from darner.wire.commands.meta_replies import close_item, meta_line, send_line
from darner.wire.commands.slicing import is_behind_replies, retry, retry_or_refuse
from darner.wire.commands.steps import Steps
from darner.wire.commands.waiting_get import wait
from darner.wire.connection import Connection
from darner.wire.replies import CLOSE_FIRST, END, NOT_HELD, server_error

# An item in memory that has more bytes is not copied as a whole to be sent.
LARGE_BYTES = CHUNK_BYTES


def get(connection: Connection, request: Request) -> None:
    """`get <queue>[/option]*` and `gets`, of one queue or several."""
    if request.rest is not None:
        if request.waits_on_any:
            get_any(connection, request, STEPS)
        else:
            get_many(connection, request, STEPS)
        return
    if connection.holds.held and _holds_too_many(connection, request):
        connection.sender.replies.append(CLOSE_FIRST)
        return
    source = connection.sources.get(request.queue)
    if source is None or request.has_options:
        _get_otherwise(connection, request, source)
        return
    try:
        if isinstance(source, Queue):  # the compiled method is called without a lookup
            queue = source
            item = queue.take()
        else:
            item = source.take()
    except JournalError as error:
        _fail(connection, request, source, 0, error)
        return
    answer(connection, request, source, item)


def _get_otherwise(connection: Connection, request: Request, queue: Source | None) -> None:
    """Fetch with options, or from a queue that is not among the sources yet; or close one item by `md`."""
    # nothing is made for a call that few need: each reliable get comes through here
    if connection.sender.pending_writes:
        is_behind_replies(connection, functools.partial(_get_otherwise, connection, request, queue))
        return
    if request.meta is not None and request.meta.token is not None:
        close_item(connection, request, request.meta.token)
        return
    if request.token and not connection.holds.has_item(request.queue, request.token):
        connection.sender.replies.append(NOT_HELD)
        return
    try:
        queue = prepare(connection, request, queue)
    except NotReadyError as error:
        retry(connection, error, functools.partial(_get_otherwise, connection, request, queue))
        return
    except UnavailableError as error:
        connection.sender.replies.append(server_error(error))
        return
    if queue is None or not request.fetches:
        answer(connection, request, queue, None)
        return
    timeout_ms = request.timeout_ms
    fetch_or_wait(
        connection, request, queue, connection.clients.loop.time() + timeout_ms / 1000 if timeout_ms else 0
    )


def _holds_too_many(connection: Connection, request: Request) -> bool:
    """Return whether the items that the client holds stand in the way of a `get`."""
    if request.close or request.abort or request.peek or request.queue not in connection.holds.held:
        return False
    most = connection.broker.settings(request.queue).max_open_reads if request.open else 1
    return connection.holds.has_as_many(request.queue, most)


def prepare(connection: Connection, request: Request, queue: Source | None) -> Source | None:
    """Do what goes before a fetch: find the queue, if it is None, close or abort what is held, as the options
    say, and count. Returns the queue to fetch from."""
    if queue is None:
        queue = _find_source(connection, request)
        if queue is None:
            return None
        if request.queue.partition(MARK)[0] not in connection.sources:  # not a cursor over an open queue
            connection.expect_long_work()  # it may be new
    release(connection, request)
    if request.open:
        counts = queue.counts
        counts.transactions += 1
    return queue


def _find_source(connection: Connection, request: Request) -> Source | None:
    """Return the queue to fetch from, or to wait at; None if it is not there, or the name is an alias.

    What the client holds may be closed or aborted all the same, and whatever the server's status."""
    try:
        takes = request.fetches and not request.peek
        waits = request.fetches and request.timeout_ms > 0
        queue = connection.broker.source(
            request.queue, takes=takes, waits=waits, has_disconnected=connection.has_disconnected
        )
    except StatusError:
        release(connection, request)
        if request.fetches:
            raise
        return None
    if queue is None:
        release(connection, request)
    return queue


def release(connection: Connection, request: Request) -> None:
    """Close or abort what is held, as the options say."""
    if request.close:
        connection.holds.close_item(request.queue, request.token)
    elif request.has_delay:
        _defer(connection, request)
    elif request.abort:
        _wait_for(connection, connection.holds.abort(request.queue, request.token))


def _defer(connection: Connection, request: Request) -> None:
    """Abort what is held with a delay. JournalError if nothing is taken in now: then it is still held, for
    at the head it would be fetched at once, by a client that asked for a pause."""
    connection.expect_long_work()  # the bytes may have to be read
    _wait_for(connection, connection.holds.defer(request.queue, request.token, request.delay_ms))


def _wait_for(connection: Connection, pending: Pending | None) -> None:
    """Have the reply wait for what takes an item back, if that is not done."""
    if pending is not None and pending.is_backlogged:
        connection.sender.wait_for(pending)


def fetch(request: Request, queue: Source) -> Item | None:
    """Return the item that the options ask for; None if there is none. JournalError if it cannot be had."""
    if request.open:
        return queue.reserve()
    if request.from_id:
        return _look(request, queue)
    return queue.peek() if request.peek else queue.take()


def _look(request: Request, queue: Source) -> Item | None:
    """Return the item that a `peek/from` asks for; NotReadyError if the look goes on in another turn."""
    try:
        return queue.peek_from(request.from_id)
    except NotReadyError as error:
        request.from_id = error.next_id or request.from_id
        raise


def fetch_or_wait(connection: Connection, request: Request, queue: Source, deadline: float) -> None:
    """Fetch an item, or wait for one until the time `deadline` of the loop; 0 if not at all."""
    try:
        item = fetch(request, queue)
    except JournalError as error:
        _fail(connection, request, queue, deadline, error)
        return
    if item is None and deadline:
        wait(connection, request, queue, deadline, STEPS)
    else:
        answer(connection, request, queue, item, one_of_many=False, deadline=deadline)


def _fail(
    connection: Connection, request: Request, queue: Source, deadline: float, error: JournalError
) -> None:
    """Reply why nothing can be fetched; or try again, if that will soon be of use."""
    again = functools.partial(fetch_or_wait, connection, request, queue, deadline)
    retry_or_refuse(connection, error, again)


def answer(
    connection: Connection,
    request: Request,
    queue: Source | None,
    item: Item | None,
    *,
    one_of_many: bool = False,
    deadline: float = 0,
    again: Callable[[], None] | None = None,
) -> None:
    """Count a fetch, and reply with the item and `END`, or `END` alone; no `END` behind one of many.

    If the item turns out to be damaged, call `again`; without it fetch another one of the queue, or wait for
    one until `deadline`."""
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
        send_line(connection, request, queue, item)
    elif item.record is None or item.size > LARGE_BYTES:
        again = again or functools.partial(fetch_or_wait, connection, request, queue, deadline)
        FetchDelivery(connection, request, queue, item, again, STEPS, is_one_of_many=one_of_many).start()
        return
    else:
        send_item(connection, request, item, one_of_many=one_of_many, queue=queue)
    if request.open:
        # the client has its bytes; should it come back, they are read again
        item.forget_data()


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
    if request.meta is None or queue is None:
        reply = value(key(connection, request), item, request.with_cas, not one_of_many)
    else:
        reply = b"%s%s\r\n" % (meta_line(request, queue, item), item.data)
    sender = connection.sender
    sender.replies.append(reply)
    sender.gathered_bytes += len(reply)


def key(connection: Connection, request: Request) -> bytes:
    """Return the key that a value has in a reply."""
    return request.queue.partition(b"/")[0] if connection.bare_keys else request.key


STEPS = Steps(prepare, release, fetch, fetch_or_wait, answer, key)
