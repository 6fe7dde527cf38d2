"""The commands that change whole queues or the server: delete, flush, configure, status, reload and so on."""

import logging
from collections.abc import Iterator

from darner import _proto
from darner._proto import Request
from darner.errors import ConfigError, JournalError, StatusError, UnavailableError
from darner.queues.cursor import MARK
from darner.queues.pending import Pending
from darner.queues.status import STATUSES
from darner.wire.commands.slicing import run_in_slices
from darner.wire.connection import Connection
from darner.wire.replies import (
    BAD_FORMAT,
    BAD_NAME,
    BAD_STATUS,
    DELETED,
    END,
    FLUSHED,
    NO_SHUTDOWN,
    OK,
    RELOADED,
    client_error,
    server_error,
)

# What is logged at each verbosity; memcached knows more.
LEVELS = {0: logging.WARNING, 1: logging.INFO}


def delete(connection: Connection, request: Request) -> None:
    """`delete <queue>`; memcached's old time argument is taken if it is 0."""
    args = request.args
    if not 1 <= len(args) <= 2 or args[1:] not in ([], [b"0"]):
        connection.reply(request, BAD_FORMAT, is_error=True)
    elif not all(map(_proto.valid_name, args[0].split(MARK, 1))):
        connection.reply(request, BAD_NAME, is_error=True)
    else:
        run_in_slices(connection, _delete(connection, request))


def _delete(connection: Connection, request: Request) -> Iterator[Pending | None]:
    try:
        is_found = yield from connection.broker.steps_to_delete(request.args[0])
    except UnavailableError as error:
        connection.reply(request, server_error(error), is_error=True)
        return
    connection.counters.delete_hits += is_found
    connection.counters.delete_misses += not is_found
    connection.reply(request, DELETED)


def _has_one_name(connection: Connection, request: Request) -> bool:
    """Return whether the only argument is the name of a queue; if not, the request is refused."""
    args = request.args
    if len(args) != 1:
        connection.reply(request, BAD_FORMAT, is_error=True)
    elif not _proto.valid_name(args[0]):
        connection.reply(request, BAD_NAME, is_error=True)
    else:
        return True
    return False


def flush(connection: Connection, request: Request) -> None:
    """`flush <queue>`."""
    if _has_one_name(connection, request):
        run_in_slices(connection, _flush(connection, request))


def _flush(connection: Connection, request: Request) -> Iterator[Pending | None]:
    try:
        yield from connection.broker.steps_to_flush(request.args[0])
    except UnavailableError as error:
        connection.reply(request, server_error(error), is_error=True)
        return
    connection.counters.cmd_flush += 1
    connection.reply(request, END)


def flush_all(connection: Connection, request: Request) -> None:
    """`flush_all [<seconds>]`: now, or so many seconds from now."""
    args = request.args
    if len(args) > 1 or not all(arg.isdigit() and len(arg) < 10 for arg in args):
        connection.reply(request, BAD_FORMAT, is_error=True)
        return
    try:
        connection.broker.status.check_sets()
    except StatusError as error:
        connection.reply(request, server_error(error), is_error=True)
        return
    connection.counters.cmd_flush += 1
    delay_s = int(args[0]) if args else 0
    reply = FLUSHED if connection.bare_keys else OK
    if delay_s:
        connection.clients.flush_all_later(delay_s)
        connection.reply(request, reply)
        return
    connection.clients.flush_all_later(None)
    run_in_slices(connection, _flush_all(connection, request, reply))


def _flush_all(connection: Connection, request: Request, reply: bytes) -> Iterator[Pending | None]:
    errors: list[JournalError] = []
    yield from connection.broker.flush_all(errors)
    if errors:
        connection.reply(request, server_error(errors[0]), is_error=True)
    else:
        connection.reply(request, reply)


def flush_expired(connection: Connection, request: Request) -> None:
    """`flush_expired <queue>`: the reply is how many items had expired."""
    if _has_one_name(connection, request):
        run_in_slices(connection, _flush_expired(connection, request, request.args[0]))


def flush_all_expired(connection: Connection, request: Request) -> None:
    """`flush_all_expired`: as `flush_expired`, of all queues."""
    if request.args:
        connection.reply(request, BAD_FORMAT, is_error=True)
    else:
        run_in_slices(connection, _flush_expired(connection, request, None))


def _flush_expired(connection: Connection, request: Request, name: bytes | None) -> Iterator[Pending | None]:
    try:
        count = yield from connection.broker.steps_to_flush_expired(name)
    except UnavailableError as error:
        connection.reply(request, server_error(error), is_error=True)
    else:
        connection.reply(request, b"%d\r\n" % count)


def configure(connection: Connection, request: Request) -> None:
    """`configure <queue> [<setting>=<value>]...`: change what is set for a queue at run time."""
    args = request.args
    if not args:
        connection.reply(request, BAD_FORMAT, is_error=True)
    elif not _proto.valid_name(args[0]):
        connection.reply(request, BAD_NAME, is_error=True)
    else:
        run_in_slices(connection, _configure(connection, request))


def _configure(connection: Connection, request: Request) -> Iterator[Pending | None]:
    name, *arguments = request.args
    try:
        yield from connection.broker.configuring.configure(name, arguments)
    except ConfigError as error:
        connection.reply(request, client_error(error), is_error=True)
    except UnavailableError as error:
        connection.reply(request, server_error(error), is_error=True)
    else:
        connection.reply(request, OK)


def status(connection: Connection, request: Request) -> None:
    """`status [up|readonly|quiescent]`: reply or change what the server lets clients do."""
    args = request.args
    broker = connection.broker
    if not args:
        connection.reply(request, broker.status.name.upper().encode() + b"\r\n")
        return
    name = args[0].lower().decode(errors="replace")
    if len(args) > 1 or name not in STATUSES:
        connection.reply(request, BAD_STATUS, is_error=True)
        return
    try:
        broker.set_status(STATUSES.index(name))
    except JournalError as error:
        connection.reply(request, server_error(error), is_error=True)
        return
    connection.reply(request, END)


def reload(connection: Connection, request: Request) -> None:
    """`reload`: read the configuration again."""
    run_in_slices(connection, _reload(connection, request))


def _reload(connection: Connection, request: Request) -> Iterator[Pending | None]:
    try:
        yield from connection.clients.reload()
    except ConfigError as error:
        connection.reply(request, server_error(error), is_error=True)
        return
    connection.reply(request, RELOADED)


def verbosity(connection: Connection, request: Request) -> None:
    """`verbosity <n>`: log warnings alone with 0, events as well with 1, everything with more."""
    args = request.args
    if len(args) != 1 or not args[0].isdigit() or len(args[0]) > 9:
        connection.reply(request, BAD_FORMAT, is_error=True)
        return
    logging.getLogger().setLevel(LEVELS.get(int(args[0]), logging.DEBUG))
    connection.reply(request, OK)


def shutdown(connection: Connection, request: Request) -> None:
    """`shutdown`: end the server as SIGTERM does, if that is allowed."""
    if connection.clients.shutdown is None:
        connection.reply(request, NO_SHUTDOWN, is_error=True)
        return
    connection.finish()
    connection.clients.shutdown()
