# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""The command `set`, of an item that is whole in memory.

What a reply says is in the log by then; only the reply to a set that is synced is held back until the log is
on the disk.
"""

from collections.abc import Collection, Sequence

from darner._proto import Request
from darner.errors import DarnerError
from darner.queues.fanout import Fanout
from darner.queues.queue import Queue
from darner.wire.connection import Connection
from darner.wire.replies import STORED, not_stored


def set_(connection: Connection, request: Request) -> None:
    """`set <queue>[/<option>]* <flags> <exptime> <bytes> [noreply]`, its data in memory."""
    connection.counters.cmd_set += 1
    sinks = connection.broker.sinks
    queue = sinks.get(request.queue)
    if queue is None or request.delay_ms or request.dedup_id is not None or request.meta is not None:
        _set_elsewhere(connection, request)
        return
    try:
        queue.push(request.record, request.flags, request.exptime)
    except DarnerError as error:
        connection.reply(request, not_stored(error), is_error=True)
        return
    sender = connection.sender
    sender.replies.append(b"" if request.noreply else STORED)
    if request.sync or queue.syncs:
        connection.broker.syncing.sync((queue,), sender, len(sender.replies) - 1, asked=request.sync)
    if queue.journal.is_backlogged:
        sender.wait_for(queue.journal)


def _set_elsewhere(connection: Connection, request: Request) -> None:
    """Set to a new queue, to several, with a delay or an id, or by a meta command."""
    connection.expect_long_work()
    record, flags, exptime, delay_ms = request.record, request.flags, request.exptime, request.delay_ms
    stored: Collection[Queue]
    try:
        sink = connection.broker.sinks.get(request.queue) or connection.broker.routes.sink(request.queue)
        if isinstance(sink, Fanout) or request.dedup_id is not None:
            fanout = sink if isinstance(sink, Fanout) else Fanout((sink,))
            queues = fanout.queues
            stored = fanout.push(record, flags, exptime, delay_ms, request.dedup_id)
        else:
            queues = stored = (sink,)
            if delay_ms:
                sink.push_delayed(record, flags, exptime, delay_ms)
            else:
                sink.push(record, flags, exptime)
    except DarnerError as error:
        connection.reply(request, not_stored(error), is_error=True)
        return
    reply_stored(connection, request, queues, stored)


def reply_stored(
    connection: Connection, request: Request, queues: Sequence[Queue], stored: Collection[Queue]
) -> None:
    """Reply that each of these queues has had an item, once it is synced if it has to be. Those in `stored`
    have got it now, and the others before."""
    reply = b"" if request.noreply else STORED
    meta = request.meta
    if meta is not None:
        # one that is delayed has no id yet, and that of one set before is not known
        has_id = not request.delay_ms and queues[0] in stored
        reply = meta.answer(STORED, queues[0].journal.state.next_id - 1 if has_id else 0)
    sender = connection.sender
    sender.replies.append(reply)
    slot = len(sender.replies) - 1
    repeated = [queue for queue in queues if queue not in stored]
    connection.broker.syncing.sync(queues, sender, slot, asked=request.sync, repeated=repeated)
    if meta is not None and not reply:
        sender.keep_quiet(slot)
    for queue in queues:
        if queue.journal.is_backlogged:
            sender.wait_for(queue.journal)
