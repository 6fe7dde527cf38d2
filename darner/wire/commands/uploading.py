"""The command `set`, of an item too large for memory: it comes in chunks, which go to a file."""

from darner._proto import Request
from darner.errors import DarnerError
from darner.queues.upload import Upload
from darner.wire.commands.storing import reply_stored
from darner.wire.connection import Connection
from darner.wire.replies import not_stored


def set_begin(connection: Connection, request: Request) -> None:
    """Begin a `set` of an item too large for memory; its chunks follow."""
    connection.counters.cmd_set += 1
    try:
        connection.begin_upload(request, connection.broker.upload(request.queue, request.size))
    except DarnerError as error:
        connection.begin_upload(request, error)


def set_chunk(connection: Connection, request: Request) -> None:
    """Take the next chunk of the item begun."""
    upload = connection.upload
    if not isinstance(upload, Upload):
        return
    try:
        upload.write(request.data)
        connection.wait_for_room(upload)
    except DarnerError as error:
        upload.abandon()
        connection.upload = error


def set_end(connection: Connection, request: Request) -> None:
    """Store the item begun: all its chunks have come."""
    connection.expect_long_work()
    begin, upload = connection.end_upload()
    if isinstance(upload, DarnerError):
        connection.reply(request, not_stored(upload), is_error=True)
        return

    def done(error: DarnerError | None) -> None:
        if error is None:
            reply_stored(connection, begin, upload.queues)
        else:
            connection.reply(begin, not_stored(error), is_error=True)
        connection.end_storing()

    connection.begin_storing()
    upload.finish(begin.flags, begin.exptime, done, sync=begin.sync, delay_ms=begin.delay_ms)
