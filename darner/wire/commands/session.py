"""The commands that concern the connection alone, and what is no command."""

from darner._proto import Request
from darner.wire.connection import Connection
from darner.wire.replies import BAD_FORMAT, META_NO_OP, META_NOTHING


def quit_(connection: Connection, _: Request) -> None:
    """`quit`."""
    connection.finish()


def mn(connection: Connection, request: Request) -> None:
    """`mn`: the reply says that everything before it is answered."""
    connection.counters.cmd_meta += 1
    connection.reply(request, META_NO_OP)


def me(connection: Connection, request: Request) -> None:
    """`me <key> [b]`, for which memcached tells how it keeps an item: there is nothing to tell."""
    if not request.args or request.args[1:] not in ([], [b"b"]):
        connection.reply(request, BAD_FORMAT)
        return
    connection.counters.cmd_meta += 1
    connection.reply(request, META_NOTHING)


def refused(connection: Connection, request: Request) -> None:
    """Reply with the error that the parser has found."""
    connection.reply(request, request.error, is_error=True)


def fatal(connection: Connection, request: Request) -> None:
    """Reply with the error that the parser has found, and close: the next request cannot be found."""
    connection.reply(request, request.error, is_error=True)
    connection.finish(linger=True)


def other_protocol(connection: Connection, request: Request) -> None:
    """Close the connection of a client that speaks another protocol."""
    connection.clients.log_other_protocol(request.verb, connection.address)
    connection.finish()
