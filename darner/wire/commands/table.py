"""What each verb does: one small function a verb, in a table. Those of `set` and `get` are in items.py, which
is compiled."""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from darner import _proto
from darner._proto import Request, Verb
from darner._version import __version__
from darner.config.settings import QueueSettings
from darner.errors import ConfigError, JournalError, MendingError, StatusError, UnavailableError
from darner.printable import shown
from darner.queues.broker import Broker
from darner.queues.cursor import MARK
from darner.queues.queue import Queue
from darner.queues.status import STATUSES
from darner.wire.commands.items import get, get_end, set_, set_begin, set_chunk, set_end
from darner.wire.commands.reserving import confirm, monitor
from darner.wire.figures import AGENT_FIGURES, SERVER_FIGURES, read, read_queue
from darner.wire.replies import BAD_FORMAT, BAD_NAME, BAD_STATUS, END, NO_SHUTDOWN, OK, server_error

if TYPE_CHECKING:
    from darner.wire.connection import Connection

# memcached knows more levels; these are what a log has
LEVELS = {0: logging.WARNING, 1: logging.INFO}

# How many names `dump_stats` gives between two looks at the time, and at how much the client has to read.
CHILDREN_PER_PIECE = 256


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
        connection.broker.deletion.sync()


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
    _go_on(connection, _flush_all(connection, request, reply))


def _flush_all(connection: "Connection", request: Request, reply: bytes) -> Iterator[bool]:
    errors: list[JournalError] = []
    for _ in connection.broker.flush_all(errors):
        yield False
    if errors:
        connection.reply(request, server_error(errors[0]), is_error=True)
    else:
        connection.reply(request, reply)


def _go_on(connection: "Connection", steps: Iterator[bool]) -> None:
    """Do these steps while others are served in between. After one that gives True nothing more is done in
    this turn."""
    # no function that knows itself: what the collector alone frees costs others their time
    for must_wait in steps:
        if must_wait or connection.should_yield:
            connection.go_on(functools.partial(_go_on, connection, steps))
            return


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
    _flush_expired(connection, request, list(broker.queues.values()), list(broker.out_of_service.values()))


def _flush_expired(
    connection: "Connection", request: Request, queues: list[Queue], failures: list[JournalError]
) -> None:
    _go_on(connection, _flush_expired_of(connection, request, queues, failures))


def _flush_expired_of(
    connection: "Connection", request: Request, queues: list[Queue], failures: list[JournalError]
) -> Iterator[bool]:
    total = 0
    for queue in queues:
        while True:
            try:
                for count in queue.flush_expired():
                    total += count
                    yield False
            except MendingError as error:
                error.journal.held_back.append(connection)
                connection.hold()
                yield True
                continue
            except JournalError as error:
                failures.append(error)
            break
    if failures:
        connection.reply(request, server_error(failures[0]), is_error=True)
    else:
        connection.reply(request, b"%d\r\n" % total)


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
    if args == [b"reset"]:
        connection.counters.reset()
        connection.broker.reset_stats()
        connection.reply(request, b"RESET\r\n")
        return
    pieces = _figures(connection, args) if args in ([], [b"settings"], [b"queues"]) else iter((END,))
    _reply_in_slices(connection, request, pieces)


def _figures(connection: "Connection", args: Sequence[bytes]) -> Iterator[bytes]:
    """What `stats` says: of the server first, then of each queue as it is when its turn comes."""
    clients = connection.clients
    if not args:
        for figure in read((*SERVER_FIGURES, *AGENT_FIGURES), clients):  # some are sums over all queues
            yield _stat_lines((figure,))
    if args == [b"settings"]:
        yield _stat_lines(clients.describe_settings())
    if args == [b"queues"] or (not args and clients.lists_queues):
        broker = connection.broker
        for name in sorted(broker.visible):
            queue = broker.find_visible(name)
            if queue is not None:  # not deleted meanwhile
                yield _stat_lines(read_queue(queue), f"queue_{shown(name)}_")
    yield END


def _stat_lines(figures: Iterable[tuple[str, object]], prefix: str = "") -> bytes:
    return b"".join(f"STAT {prefix}{key} {figure}\r\n".encode() for key, figure in figures)


def _reply_in_slices(connection: "Connection", request: Request, pieces: Iterator[bytes]) -> None:
    """Reply with these pieces. They are made as the client reads them, and others are served in between."""
    _go_on(connection, _replied(connection, request, pieces))


def _replied(connection: "Connection", request: Request, pieces: Iterator[bytes]) -> Iterator[bool]:
    for piece in pieces:
        connection.reply(request, piece)
        yield False


# The connection's own


def dump_stats(connection: "Connection", request: Request) -> None:
    """`dump_stats [<queue>…]`: what `stats` says of these queues, or of all, with their children."""
    _reply_in_slices(connection, request, _dump_stats(connection.broker, request.args))


def _dump_stats(broker: Broker, asked: Sequence[bytes]) -> Iterator[bytes]:
    for name in asked or sorted({*broker.visible, *broker.routes.aliases}):
        is_alias = name in broker.routes.aliases
        queue = None if is_alias else broker.find_visible(name)
        if not (asked or queue is not None or is_alias):
            continue  # deleted meanwhile
        yield _dumped(name, read_queue(queue) if queue is not None else ())
        yield from _dumped_children(broker.routes.children(name))
        yield b"}\r\n"
    yield END


def _dumped_children(children: Sequence[bytes]) -> Iterator[bytes]:
    for at in range(0, len(children), CHILDREN_PER_PIECE):
        names = ",".join(map(shown, children[at : at + CHILDREN_PER_PIECE]))
        yield f"{',' if at else '  children='}{names}".encode()
    if children:
        yield b"\r\n"


def dump_config(connection: "Connection", request: Request) -> None:
    """`dump_config [<queue>…]`: the settings in force of these queues, or of all."""
    _reply_in_slices(connection, request, _dump_config(connection.broker, request.args))


def _dump_config(broker: Broker, asked: Sequence[bytes]) -> Iterator[bytes]:
    for name in asked or sorted(broker.queues):
        queue = broker.queues.get(name)
        if queue is not None:
            settings = msgspec.structs.replace(queue.settings, durable=queue.is_durable)
        elif asked:
            settings = broker.settings(name)
        else:
            continue  # deleted meanwhile
        yield _dumped(name, _describe(settings)) + b"}\r\n"
    yield END


def _dumped(name: bytes, lines: Iterable[tuple[str, object]]) -> bytes:
    return f"queue '{shown(name)}' {{\r\n".encode() + b"".join(f"  {k}={v}\r\n".encode() for k, v in lines)


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
        broker.routes.set_status(STATUSES.index(name))
    except JournalError as error:
        connection.reply(request, server_error(error), is_error=True)
        return
    connection.reply(request, END)


def reload(connection: "Connection", request: Request) -> None:
    """`reload`: read the configuration again."""
    _go_on(connection, _reload(connection, request))


def _reload(connection: "Connection", request: Request) -> Iterator[bool]:
    try:
        for _ in connection.clients.reload():
            yield False
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
    connection.counters.cmd_meta += 1
    connection.reply(request, b"MN\r\n")


def me(connection: "Connection", request: Request) -> None:
    """`me <key> [b]`: there is nothing to say of how memcached keeps an item."""
    if not request.args or request.args[1:] not in ([], [b"b"]):
        connection.reply(request, BAD_FORMAT)
        return
    connection.counters.cmd_meta += 1
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
