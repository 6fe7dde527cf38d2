"""What each verb does: one small function a verb, in a table. Those of `set` and `get` are in items.py, which
is compiled."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from darner import _proto
from darner._proto import Request, Verb
from darner._version import __version__
from darner.config import QueueSettings
from darner.cursor import MARK
from darner.errors import ConfigError, JournalError, MendingError, StatusError, UnavailableError
from darner.figures import AGENT_FIGURES, SERVER_FIGURES, read, read_queue
from darner.items import get, get_end, set_, set_begin, set_chunk, set_end
from darner.monitor import confirm, monitor
from darner.printable import shown
from darner.queue import Queue
from darner.replies import BAD_FORMAT, BAD_NAME, BAD_STATUS, END, NO_SHUTDOWN, OK, server_error
from darner.status import STATUSES

if TYPE_CHECKING:
    from darner.connection import Connection

# memcached knows more levels; these are what a log has
LEVELS = {0: logging.WARNING, 1: logging.INFO}


def delete(connection: "Connection", request: Request) -> None:
    """`delete <queue>`; memcached's old time argument is taken if it is 0."""
    args = request.args
    if not 1 <= len(args) <= 2 or args[1:] not in ([], [b"0"]):
        connection.reply(request, BAD_FORMAT, is_error=True)
    elif not all(map(_proto.valid_name, args[0].split(MARK, 1))):
        connection.reply(request, BAD_NAME, is_error=True)
    else:
        try:
            connection.broker.status.check_sets()
            found = connection.broker.delete(args[0])
        except UnavailableError as error:
            connection.reply(request, server_error(error), is_error=True)
            return
        connection.counters.delete_hits += found
        connection.counters.delete_misses += not found
        connection.reply(request, b"DELETED\r\n")
        connection.broker.reap()


def flush(connection: "Connection", request: Request) -> None:
    """`flush <queue>`."""
    args = request.args
    if len(args) != 1:
        connection.reply(request, BAD_FORMAT, is_error=True)
    elif not _proto.valid_name(args[0]):
        connection.reply(request, BAD_NAME, is_error=True)
    else:
        try:
            connection.broker.status.check_sets()
            queue = connection.broker.find(args[0])
            if queue is not None:
                queue.flush()
        except UnavailableError as error:
            connection.reply(request, server_error(error), is_error=True)
            return
        connection.counters.cmd_flush += 1
        connection.reply(request, END)


def flush_all(connection: "Connection", request: Request) -> None:
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
    reply = b"Flushed all queues.\r\n" if connection.bare_keys else OK
    if delay_s:
        connection.clients.flush_all_later(delay_s)
        connection.reply(request, reply)
        return
    connection.clients.flush_all_later(None)
    failures = connection.broker.flush_all()
    if failures:
        connection.reply(request, server_error(failures[0]), is_error=True)
        return
    connection.reply(request, reply)


def flush_expired(connection: "Connection", request: Request) -> None:
    """`flush_expired <queue>`: the reply is how many items had expired."""
    args = request.args
    if len(args) != 1:
        connection.reply(request, BAD_FORMAT, is_error=True)
    elif not _proto.valid_name(args[0]):
        connection.reply(request, BAD_NAME, is_error=True)
    else:
        try:
            connection.broker.status.check_sets()
            queue = connection.broker.find(args[0])
        except UnavailableError as error:
            connection.reply(request, server_error(error), is_error=True)
            return
        _flush_expired(connection, request, [queue] if queue is not None else [], [])


def flush_all_expired(connection: "Connection", request: Request) -> None:
    """`flush_all_expired`: as `flush_expired`, of all queues."""
    if request.args:
        connection.reply(request, BAD_FORMAT, is_error=True)
        return
    broker = connection.broker
    try:
        broker.status.check_sets()
    except StatusError as error:
        connection.reply(request, server_error(error), is_error=True)
        return
    _flush_expired(connection, request, list(broker.queues.values()), list(broker.broken.values()))


def _flush_expired(
    connection: "Connection", request: Request, queues: list[Queue], failures: list[JournalError]
) -> None:
    total = 0

    def slices() -> Iterator[int]:
        for queue in queues:
            while True:
                try:
                    yield from queue.flush_expired()
                except MendingError as error:
                    error.journal.crowding.append(connection)
                    connection.hold()
                    yield 0
                    continue
                except JournalError as error:
                    failures.append(error)
                break

    def go_on() -> None:
        nonlocal total
        count = next(counts, None)
        if count is not None:
            total += count
            connection.go_on(go_on)
        elif failures:
            connection.reply(request, server_error(failures[0]), is_error=True)
        else:
            connection.reply(request, b"%d\r\n" % total)

    counts = slices()
    go_on()


def version(connection: "Connection", request: Request) -> None:
    """`version`."""
    connection.reply(request, f"VERSION {__version__}\r\n".encode())


def verbosity(connection: "Connection", request: Request) -> None:
    """`verbosity <n>`: 0 logs warnings, 1 what happens, 2 and more all there is."""
    args = request.args
    if len(args) != 1 or not args[0].isdigit() or len(args[0]) > 9:
        connection.reply(request, BAD_FORMAT, is_error=True)
        return
    logging.getLogger().setLevel(LEVELS.get(int(args[0]), logging.DEBUG))
    connection.reply(request, OK)


def stats(connection: "Connection", request: Request) -> None:
    """`stats`, `stats queues`, `stats settings` and `stats reset`; about anything else there is nothing to
    say."""
    args = request.args
    clients = connection.clients
    if args == [b"reset"]:
        connection.counters.reset()
        connection.broker.reset_stats()
        connection.reply(request, b"RESET\r\n")
        return
    if not args:
        figures = read((*SERVER_FIGURES, *AGENT_FIGURES), clients)
        connection.reply(request, b"".join(f"STAT {k} {v}\r\n".encode() for k, v in figures))
    if args == [b"settings"]:
        settings = clients.describe_settings()
        connection.reply(request, b"".join(f"STAT {k} {v}\r\n".encode() for k, v in settings))
    if args == [b"queues"] or (not args and clients.lists_queues):
        for name, queue in sorted(connection.broker.visible.items()):
            prefix = f"STAT queue_{shown(name)}_"
            lines = (f"{prefix}{k} {v}\r\n".encode() for k, v in read_queue(queue))
            connection.reply(request, b"".join(lines))
    connection.reply(request, END)


# The connection's own


def dump_stats(connection: "Connection", request: Request) -> None:
    """`dump_stats [<queue>…]`: what `stats` says of these queues, or of all, with their children."""
    broker = connection.broker
    visible = broker.visible
    for name in request.args or sorted({*visible, *broker.aliases}):
        queue = visible.get(name) if name not in broker.aliases else None
        _dump(
            connection,
            request,
            name,
            read_queue(queue) if queue is not None else (),
            broker.children(name),
        )
    connection.reply(request, END)


def dump_config(connection: "Connection", request: Request) -> None:
    """`dump_config [<queue>…]`: the settings in force of these queues, or of all."""
    broker = connection.broker
    for name in request.args or sorted(broker.queues):
        settings = broker.settings(name)
        if name in broker.queues:
            settings = msgspec.structs.replace(settings, durable=broker.queues[name].is_durable)
        _dump(connection, request, name, _describe(settings))
    connection.reply(request, END)


def _describe(settings: QueueSettings) -> Iterator[tuple[str, str]]:
    """The settings of a queue as they may stand in the configuration."""
    for field, setting in msgspec.structs.asdict(settings).items():
        key = field.removesuffix("_ms")
        if key == "sync" and not setting:
            yield key, "never" if setting is None else "always"
        elif setting is None:
            yield key, "none"
        elif isinstance(setting, bool):
            yield key, str(setting).lower()
        elif isinstance(setting, str):
            yield key, shown(setting.encode())
        else:
            yield key, f"{setting}ms" if key != field else str(setting)


def _dump(
    connection: "Connection",
    request: Request,
    name: bytes,
    lines: Iterable[tuple[str, object]],
    children: Sequence[bytes] = (),
) -> None:
    reply = f"queue '{shown(name)}' {{\r\n".encode() + b"".join(f"  {k}={v}\r\n".encode() for k, v in lines)
    if children:
        reply += f"  children={','.join(map(shown, children))}\r\n".encode()
    connection.reply(request, reply + b"}\r\n")


def status(connection: "Connection", request: Request) -> None:
    """`status [up|readonly|quiescent]`: say or change what the server lets clients do."""
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


def reload(connection: "Connection", request: Request) -> None:
    """`reload`: read the configuration again."""
    try:
        connection.clients.reload()
    except ConfigError as error:
        connection.reply(request, server_error(error), is_error=True)
        return
    connection.reply(request, b"Reloaded config.\r\n")


def shutdown(connection: "Connection", request: Request) -> None:
    """`shutdown`: end the server as SIGTERM does, if that is allowed."""
    if connection.clients.shutdown is None:
        connection.reply(request, NO_SHUTDOWN, is_error=True)
        return
    connection.finish()
    connection.clients.shutdown()


def quit_(connection: "Connection", _: Request) -> None:
    """`quit`."""
    connection.finish()


def mn(connection: "Connection", request: Request) -> None:
    """`mn`: its reply says that all before it is answered."""
    connection.reply(request, b"MN\r\n")


def me(connection: "Connection", request: Request) -> None:
    """`me <key>`: there is nothing to say of how memcached keeps an item."""
    connection.reply(request, b"EN\r\n")


def refused(connection: "Connection", request: Request) -> None:
    """What the parser has found wrong."""
    connection.reply(request, request.error, is_error=True)


def fatal(connection: "Connection", request: Request) -> None:
    """As `refused`, and the next request cannot be found."""
    connection.reply(request, request.error, is_error=True)
    connection.finish(linger=True)


def stranger(connection: "Connection", request: Request) -> None:
    """What came is another protocol."""
    connection.clients.log_stranger(request.verb, connection.peer)
    connection.finish()


COMMANDS: dict[int, Callable[["Connection", Request], None]] = {
    Verb.GET: get,
    Verb.GETS: get,
    Verb.GET_END: get_end,
    Verb.SET: set_,
    Verb.SET_BEGIN: set_begin,
    Verb.SET_CHUNK: set_chunk,
    Verb.SET_END: set_end,
    Verb.REFUSED: refused,
    Verb.FATAL: fatal,
    Verb.BINARY: stranger,
    Verb.TLS: stranger,
    Verb.HTTP: stranger,
    Verb.DELETE: delete,
    Verb.FLUSH: flush,
    Verb.FLUSH_ALL: flush_all,
    Verb.FLUSH_EXPIRED: flush_expired,
    Verb.FLUSH_ALL_EXPIRED: flush_all_expired,
    Verb.STATS: stats,
    Verb.VERSION: version,
    Verb.VERBOSITY: verbosity,
    Verb.DUMP_STATS: dump_stats,
    Verb.DUMP_CONFIG: dump_config,
    Verb.STATUS: status,
    Verb.RELOAD: reload,
    Verb.SHUTDOWN: shutdown,
    Verb.MONITOR: monitor,
    Verb.CONFIRM: confirm,
    Verb.QUIT: quit_,
    Verb.MN: mn,
    Verb.ME: me,
}
# by number, which is what a request has
TABLE = [COMMANDS[verb] for verb in sorted(Verb)]
