"""The replies to meta commands about one item: its line, and the close of a reserved one by its token."""

from typing import cast

from darner._proto import Request
from darner._records import Item
from darner.errors import JournalError
from darner.meta_flags import Meta
from darner.queues.cursor import Cursor
from darner.queues.queue import Queue
from darner.queues.waiters import Source
from darner.wire.connection import Connection
from darner.wire.replies import DELETED, NOT_FOUND, server_error


def meta_line(request: Request, queue: Source, item: Item) -> bytes:
    """Return the line that a meta command is answered with for an item."""
    owner = queue if isinstance(queue, Queue) else cast("Cursor", queue).queue
    now = owner.clock()
    left_s = owner.times.age_ms(now, item.expires_ms) // 1000 if item.expires_ms else -1
    age_s = owner.times.age_ms(item.enqueued_ms, now) // 1000
    meta = cast("Meta", request.meta)
    return meta.found(item.size, item.flags, item.token, item.attempts, left_s, age_s)


def send_line(connection: Connection, request: Request, queue: Source, item: Item) -> None:
    """Reply with what a meta command asks of an item, if that is not its data."""
    if item.record is None and not (request.open or request.peek):
        try:
            queue.close(item)
        except JournalError as error:
            queue.give_back(item)
            connection.sender.replies.append(server_error(error))
            return
    connection.sender.replies.append(meta_line(request, queue, item))


def close_item(connection: Connection, request: Request, token: int) -> None:
    """Remove the reserved item with that token for good."""
    try:
        closed = connection.holds.close_item(request.queue, token)
    except JournalError as error:
        connection.sender.replies.append(server_error(error))
        return
    connection.counters.delete_hits += closed
    connection.counters.delete_misses += not closed
    connection.reply(request, DELETED if closed else NOT_FOUND)
