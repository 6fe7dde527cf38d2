# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""The command `set`, of an item that is whole in memory.

What a reply says is in the log by then; only the reply to a set that is synced is held back until the log is
on the disk.
"""

from darner._proto import Request
from darner.errors import DarnerError
from darner.wire.commands.meta_replies import StoredReply
from darner.wire.connection import Connection
from darner.wire.replies import STORED, not_stored
from darner.wire.store import Receipt


def set_(connection: Connection, request: Request) -> None:
    """`set <queue>[/<option>]* <flags> <exptime> <bytes> [noreply]`, its data in memory."""
    connection.counters.cmd_set += 1
    queue = connection.sinks.get(request.queue)
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
        queue.on_sync((queue,), sender, len(sender.replies) - 1, asked=request.sync)
    if queue.journal.is_backlogged:
        sender.wait_for(queue.journal)


def _set_elsewhere(connection: Connection, request: Request) -> None:
    """Set to a new queue, to several, with a delay or an id, or by a meta command."""
    connection.expect_long_work()
    try:
        receipt = connection.broker.push(
            request.queue,
            request.record,
            request.flags,
            request.exptime,
            request.delay_ms,
            request.dedup_id,
            sync=request.sync,
        )
    except DarnerError as error:
        connection.reply(request, not_stored(error), is_error=True)
        return
    reply_stored(connection, request, receipt)


def reply_stored(connection: Connection, request: Request, receipt: Receipt) -> None:
    """Reply that an item is stored, once it is as safe as it has to be."""
    sender = connection.sender
    if request.meta is not None:
        StoredReply(sender, request, receipt)
        return
    sender.replies.append(b"" if request.noreply else STORED)
    receipt.hold(sender, len(sender.replies) - 1)
