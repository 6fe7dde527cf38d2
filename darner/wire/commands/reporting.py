"""The commands that report and change nothing: figures of the server and its queues, settings, version."""

import os
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from darner._proto import Request
from darner._version import __version__
from darner.config.settings import QueueSettings
from darner.config.words import words
from darner.printable import shown
from darner.queues.pending import Pending
from darner.wire.clients import Clients
from darner.wire.commands.slicing import reply_in_pieces
from darner.wire.connection import Connection
from darner.wire.figure import read
from darner.wire.figures import AGENT_FIGURES, SERVER_FIGURES, read_queue
from darner.wire.replies import END, RESET

# How many names `dump_stats` gives between two looks at the time, and at how much the client has to read.
CHILDREN_PER_PIECE = 256
# How much `stats` says of why a queue is out of service.
REASON_BYTES = 500


def version(connection: Connection, request: Request) -> None:
    """`version`."""
    connection.reply(request, f"VERSION {__version__}\r\n".encode())


def stats(connection: Connection, request: Request) -> None:
    """`stats`, `stats queues`, `stats settings` and `stats reset`; the reply to any other word is empty."""
    args = request.args
    if args == [b"reset"]:
        connection.counters.reset()
        connection.broker.reset_stats()
        connection.reply(request, RESET)
        return
    pieces: Iterator[bytes | Pending]
    pieces = _figures(connection, args) if args in ([], [b"settings"], [b"queues"]) else iter((END,))
    reply_in_pieces(connection, request, pieces)


def _figures(connection: Connection, args: Sequence[bytes]) -> Iterator[bytes | Pending]:
    """Give the figures of the server first, then those of each queue as it is when its turn comes."""
    clients = connection.clients
    if args != [b"settings"]:
        yield from _look(clients, ())
    if not args:
        for figure in read((*SERVER_FIGURES, *AGENT_FIGURES), clients):  # some are sums over all queues
            yield _stat_lines((figure,))
    if args == [b"settings"]:
        yield _stat_lines(clients.describe_settings())
    if args == [b"queues"] or (not args and clients.lists_queues):
        broker = connection.broker
        for name in sorted({*broker.visible, *broker.out_of_service}):
            queue = broker.find_visible(name)
            if queue is not None:  # not deleted meanwhile
                yield _stat_lines(read_queue(clients, queue), f"queue_{shown(name)}_")
            error = broker.out_of_service.get(name)
            if error is not None:  # a figure is one word
                reason = shown(os.fsencode(str(error))[:REASON_BYTES])
                yield _stat_lines((("out_of_service", reason),), f"queue_{shown(name)}_")
    yield END


def _look(clients: Clients, names: Sequence[bytes]) -> Iterator[Pending]:
    """Give what must be done before the figures of these queues, or of all, are those of this moment."""
    return (pending for pending in clients.broker.steps_to_look(names) if pending is not None)


def _stat_lines(figures: Iterable[tuple[str, object]], prefix: str = "") -> bytes:
    return b"".join(f"STAT {prefix}{key} {figure}\r\n".encode() for key, figure in figures)


def dump_stats(connection: Connection, request: Request) -> None:
    """`dump_stats [<queue>…]`: the figures of these queues, or of all, with the names of their children."""
    reply_in_pieces(connection, request, stats_dump(connection.clients, request.args))


def stats_dump(clients: Clients, asked: Sequence[bytes]) -> Iterator[bytes | Pending]:
    """Give the reply to `dump_stats` in pieces."""
    yield from _look(clients, asked)
    broker = clients.broker
    for name in asked or sorted({*broker.visible, *broker.aliases}):
        is_alias = name in broker.aliases
        queue = None if is_alias else broker.find_visible(name)
        if not (asked or queue is not None or is_alias):
            continue  # deleted meanwhile
        yield _block(name, read_queue(clients, queue) if queue is not None else ())
        yield from _children_line(broker.children(name))
        yield b"}\r\n"
    yield END


def _children_line(children: Sequence[bytes]) -> Iterator[bytes]:
    for at in range(0, len(children), CHILDREN_PER_PIECE):
        names = ",".join(map(shown, children[at : at + CHILDREN_PER_PIECE]))
        yield f"{',' if at else '  children='}{names}".encode()
    if children:
        yield b"\r\n"


def dump_config(connection: Connection, request: Request) -> None:
    """`dump_config [<queue>…]`: the settings in force of these queues, or of all."""
    reply_in_pieces(connection, request, config_dump(connection.clients, request.args))


def config_dump(clients: Clients, asked: Sequence[bytes]) -> Iterator[bytes | Pending]:
    """Give the reply to `dump_config` in pieces."""
    yield from _look(clients, asked)
    broker = clients.broker
    for name in asked or sorted(broker.queue_names):
        settings = broker.settings_in_force(name)
        if settings is None:
            if not asked:
                continue  # deleted meanwhile
            settings = broker.settings(name)
        yield _block(name, _setting_lines(settings)) + b"}\r\n"
    yield END


def _block(name: bytes, lines: Iterable[tuple[str, object]]) -> bytes:
    return f"queue '{shown(name)}' {{\r\n".encode() + b"".join(f"  {k}={v}\r\n".encode() for k, v in lines)


def _setting_lines(settings: QueueSettings) -> Iterator[tuple[str, str]]:
    return ((key, shown(word.encode())) for key, word in words(msgspec.structs.asdict(settings)))
