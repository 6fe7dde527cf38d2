"""The command `set`, of an item too large for memory: it comes in chunks, which go to a file."""

from darner._proto import Request
from darner.errors import DarnerError
from darner.wire.commands.storing import reply_stored
from darner.wire.connection import Connection
from darner.wire.replies import not_stored
from darner.wire.store import Upload


class IncomingItem:
    """A large item that a client sends. Once it cannot be stored, the rest of it is thrown away."""

    __slots__ = ("_connection", "_request", "_upload")

    def __init__(self, connection: Connection, request: Request) -> None:
        self._connection = connection
        self._request = request
        # or the error that the client is told at the end
        self._upload: Upload | DarnerError
        try:
            self._upload = connection.broker.upload(request.queue, request.size, request.dedup_id)
        except DarnerError as error:
            self._upload = error

    def write(self, chunk: bytes) -> None:
        """Store the next chunk; take in no more while too much waits to be written."""
        upload = self._upload
        if isinstance(upload, DarnerError):
            return
        try:
            upload.write(chunk)
            if upload.is_backlogged(self._connection.unblock):
                self._connection.block()
        except DarnerError as error:
            upload.abandon()
            self._upload = error

    def finish(self, last: Request) -> None:
        """Put the item into its queues, and reply. Nothing else is served before that."""
        connection, begin, upload = self._connection, self._request, self._upload
        if isinstance(upload, DarnerError):
            connection.reply(last, not_stored(upload), is_error=True)
            return

        def done(error: DarnerError | None) -> None:
            if error is None:
                reply_stored(connection, begin, upload.receipt)
            else:
                connection.reply(begin, not_stored(error), is_error=True)
            connection.unblock()
            connection.sender.release()

        connection.block()
        connection.sender.hold()
        upload.finish(begin.flags, begin.exptime, done, sync=begin.sync, delay_ms=begin.delay_ms)

    def abandon(self) -> None:
        """Delete what has come: the client has disconnected."""
        if not isinstance(self._upload, DarnerError):
            self._upload.abandon()


def set_begin(connection: Connection, request: Request) -> None:
    """Begin a `set` of a large item; its chunks follow."""
    connection.counters.cmd_set += 1
    connection.incoming = IncomingItem(connection, request)


def set_chunk(connection: Connection, request: Request) -> None:
    """Take the next chunk of the item."""
    if connection.incoming is not None:
        connection.incoming.write(request.data)


def set_end(connection: Connection, request: Request) -> None:
    """Store the item: all its chunks have come."""
    connection.expect_long_work()
    incoming, connection.incoming = connection.incoming, None
    if incoming is not None:
        incoming.finish(request)
