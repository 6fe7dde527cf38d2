"""Large items on their way to a client.

Such an item is not removed, and nothing of it is sent, before all its bytes are verified. A damaged one goes
into quarantine, and the next item is fetched in its place.
"""

from darner import _proto
from darner._proto import Request
from darner._records import Item
from darner.errors import DamagedItemError, JournalError
from darner.journal.blob import BlobReader, MemoryReader
from darner.queues.waiters import Source
from darner.wire.commands.meta_replies import meta_line
from darner.wire.connection import Connection
from darner.wire.replies import END
from darner.wire.streaming import Reader, Stream


def large_header(request: Request, queue: Source, item: Item, key: bytes) -> bytes:
    """Return the line that stands before the bytes of a large item, which has this key in the reply."""
    if request.meta is not None:
        return meta_line(request, queue, item)
    return _proto.value_header(key, item.flags, item.size, item.token if request.with_cas else 0)


class Delivery:
    """A large item that a command sends; what a `Stream` needs of the command."""

    __slots__ = ("connection", "item", "queue", "request")

    def __init__(self, connection: Connection, request: Request, queue: Source, item: Item) -> None:
        self.connection = connection
        self.request = request
        self.queue = queue
        self.item = item

    def send(self, header: bytes, *, is_one_of_many: bool) -> None:
        """Add the item to the replies behind its `header`, and `END` behind it unless it is one of many."""
        sender = self.connection.sender
        sender.append_stream(Stream(header, self))
        if not is_one_of_many:
            sender.replies.append(END if self.request.meta is None else b"")

    def open(self) -> Reader:
        """Return the bytes of the item. JournalError if they cannot be had."""
        item, queue = self.item, self.queue
        if item.record is not None:
            reader = MemoryReader(item)
            if queue.is_reserved(item):
                item.forget_data()
            return reader
        clients = self.connection.clients
        clients.take_file()
        try:
            return queue.open_blob(item)
        except BaseException:
            clients.give_file()
            raise

    def close(self, reader: Reader) -> None:
        """Close the reader."""
        reader.close()
        if isinstance(reader, BlobReader):
            self.connection.clients.give_file()

    def begin(self) -> None:
        """Remove the item for good if it was fetched so. JournalError if it cannot be removed."""
        if not (self.request.open or self.request.peek):
            self.queue.close(self.item)

    def give_up(self) -> None:
        """Put the item back, of which nothing will be sent; one that is held goes back with all that is."""
        if not self.request.open:
            self.queue.give_back(self.item)

    def fail(self, error: JournalError) -> None:
        """Put another reply in the place of this one, which is the first: the item cannot be read, or not be
        removed."""
        del self.connection.sender.replies[0]
        failure: JournalError | None = None
        try:
            if isinstance(error, DamagedItemError):
                self.queue.quarantine(self.item, error)
            else:
                self.queue.give_back(self.item)
                failure = error
        except JournalError as another:
            failure = another
        self.replace(failure)

    def replace(self, error: JournalError | None) -> None:
        """Reply with the next item, or with the error, in front of all other replies."""
        raise NotImplementedError
