"""A `get` that waits for an item, because its queue is empty."""

import functools

from darner._proto import Request
from darner._records import Item
from darner.errors import JournalError
from darner.queues.waiters import Source, Waiter
from darner.wire.commands.steps import Steps
from darner.wire.connection import Connection
from darner.wire.replies import server_error


def wait(connection: Connection, request: Request, queue: Source, deadline: float, steps: Steps) -> None:
    """Wait for an item until the time `deadline` of the loop, and reply."""

    def end(queue: Source | None, item: Item | None) -> None:
        steps.answer(connection, request, queue, item, deadline=deadline)
        connection.end_wait()

    def fail(error: JournalError) -> None:
        connection.sender.replies.append(server_error(error))
        connection.end_wait()

    waiter = Waiter(functools.partial(steps.fetch, request), end, connection.has_disconnected, fail)
    queue.wait(waiter)
    timeout_ms = min(request.timeout_ms, int((deadline - connection.clients.loop.time()) * 1000) + 1)
    connection.begin_wait(waiter, max(0, timeout_ms), functools.partial(_time_out, waiter))


def _time_out(waiter: Waiter) -> None:
    if waiter.is_over:
        return  # an item is on its way to it
    waiter.cancel()
    waiter.deliver(None, None)
