"""A `get` whose item is large."""

from collections.abc import Callable

from darner._proto import Request
from darner._records import Item
from darner.errors import JournalError
from darner.queues.waiters import Source
from darner.wire.commands.delivering import Delivery, large_header
from darner.wire.commands.steps import Steps
from darner.wire.connection import Connection
from darner.wire.replies import server_error


class FetchDelivery(Delivery):
    """A large item that a `get` sends. If it is not to be had, the next one is fetched."""

    __slots__ = ("_again", "_steps", "is_one_of_many")

    def __init__(
        self,
        connection: Connection,
        request: Request,
        queue: Source,
        item: Item,
        again: Callable[[], None],
        steps: Steps,
        *,
        is_one_of_many: bool,
    ) -> None:
        """`again` fetches another item in place of this one, unless it is one of many."""
        super().__init__(connection, request, queue, item)
        self._again = again
        self._steps = steps
        self.is_one_of_many = is_one_of_many

    def start(self) -> None:
        """Add the item to the replies."""
        request = self.request
        header = large_header(request, self.queue, self.item, self._steps.key(self.connection, request))
        self.send(header, is_one_of_many=self.is_one_of_many)

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
                item = None if error is not None else self._steps.fetch(request, self.queue)
            except JournalError:
                item = None
            self._steps.answer(connection, request, self.queue, item, one_of_many=True)
        else:
            del rest[0]  # its END
            if error is not None:
                replies.append(server_error(error))
            else:
                self._again()
        replies += rest
