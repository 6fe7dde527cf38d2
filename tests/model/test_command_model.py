"""Every command, in random order and on several connections, against a plain model: see command_model.py.

The server is complete but for its sockets, its event loop and its clock: bytes go into each `Connection`, and
its replies are compared with the model's. Commands come at one place of the quarter of a second between two
ticks, so that their order is certain.
"""

import itertools
import json
import logging
import os
import re
import shutil
from dataclasses import replace

import pytest
from brokers import Data, log_to
from command_model import ANY, LARGE_BYTES, READONLY, STATUSES, TICK_MS, Config, Key, Model, word
from doubles import Loop, Silence, Transport
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from machines import EXAMPLES, new_directory, profile

from darner import _records
from darner.config.config_file import parse
from darner.journal import segment_file
from darner.queues import clock_runs, status
from darner.wire import connection
from darner.wire.clients import Clients
from darner.wire.commands.table import COMMANDS
from darner.wire.connection import Connection
from darner.wire.figures import LEVELDB_FIGURES

# a machine may be ten times as slow as another
pytestmark = pytest.mark.timeout(600)

START_MS = 1_700_000_000_000
# the time of commands after a tick
COMMANDS_AT_MS = 200
HOUR_MS = 3_600_000
# the least id that no item has
ID_STOP = 1 << 48
FORMAT = b"CLIENT_ERROR bad command line format\r\n"
NAME = b"CLIENT_ERROR bad queue name: 1 to 250 bytes without space, control character or /\r\n"
BAD_TOML = "max_items = 1\n"
BAD_TOML_ERROR = (
    b'darner.toml:1: max_items is set for queues: it belongs into [queue_defaults] or [queues."name"]'
)

# The first has a child, and the last but one may be an alias. No two queues move items to the same one: their
# order there would be up to the server.
NAMES = (b"a", b"a+x", b"b", b"c", b"late")
HEIRS = {b"a": "b", b"a+x": "c", b"b": "a", b"c": "late"}
ALIAS = b"c"

# Wrong requests and their replies.
WRONG = {
    b"bogus\r\n": b"ERROR\r\n",
    b"\r\n": b"ERROR\r\n",
    b"get\r\n": FORMAT,
    b"get a/what\r\n": b"CLIENT_ERROR unknown option: "
    b"get takes t=<ms> open close[=<token>] abort[=<token>] delay=<ms> peek from=<id> cursor=<name>\r\n",
    b"get a/t=x\r\n": b"CLIENT_ERROR bad timeout: t takes milliseconds\r\n",
    b"get a/abort/open\r\n": b"CLIENT_ERROR abort must be by itself, or with a delay\r\n",
    b"get a/delay=5\r\n": b"CLIENT_ERROR a get takes a delay with abort alone\r\n",
    b"get a/cursor=one/abort/delay=5\r\n": b"CLIENT_ERROR a cursor takes no delay: "
    b"it removes nothing from its queue, so it has nothing to put back\r\n",
    b"get a/open/peek\r\n": b"CLIENT_ERROR cannot open and peek\r\n",
    b"get a b/t=10\r\n": b"CLIENT_ERROR to wait on several queues, give each of them the same t\r\n",
    b"get /open\r\n": NAME,
    b"set a/what 0 0 1\r\nx\r\n": b"CLIENT_ERROR unknown option: set takes sync delay=<ms> id=<key>\r\n",
    b"set a/delay=x 0 0 1\r\nx\r\n": b"CLIENT_ERROR bad delay: delay takes milliseconds\r\n",
    b"set a x 0 1\r\nx\r\n": FORMAT,
    b"set a 0 x 1\r\nx\r\n": FORMAT,
    b"set a 4294967296 0 1\r\nx\r\n": FORMAT,
    b"set \x7f 0 0 1\r\nx\r\n": NAME,
    b"add a 0 0 1\r\nx\r\n": b"CLIENT_ERROR add is not supported\r\n",
    b"incr a 1\r\n": b"CLIENT_ERROR incr is not supported\r\n",
    b"delete\r\n": FORMAT,
    b"delete a 1\r\n": FORMAT,
    b"delete a/open\r\n": NAME,
    b"flush a b\r\n": FORMAT,
    b"flush a/x\r\n": NAME,
    b"flush_all soon\r\n": FORMAT,
    b"flush_expired\r\n": FORMAT,
    b"flush_all_expired a\r\n": FORMAT,
    b"monitor a\r\n": FORMAT,
    b"monitor a/x 1\r\n": NAME,
    b"confirm a\r\n": FORMAT,
    b"verbosity\r\n": FORMAT,
    b"status sideways\r\n": b"CLIENT_ERROR unknown status: up, readonly or quiescent\r\n",
    b"shutdown\r\n": b"CLIENT_ERROR shutdown is not allowed: allow_shutdown is not set\r\n",
    b"set a 0 0 1\r\nxyz": b"CLIENT_ERROR bad data chunk\r\n",
    b"set a 0 0 -1\r\n": FORMAT,
    b"version 1\r\n": FORMAT,
    b"quit now\r\n": FORMAT,
    b"stats reset a\r\n": b"END\r\n",
    b"status up a\r\n": FORMAT,
    b"reload a\r\n": FORMAT,
    b"mput a 0 0 6\r\n": b"ERROR\r\n",
    b"mz a 6\r\n": b"ERROR\r\n",
    b"ma a\r\n": b"CLIENT_ERROR ma is not supported\r\n",
    b"mg a z\r\n": b"CLIENT_ERROR invalid flag\r\n",
    b"ms a 1 MA\r\nx\r\n": b"CLIENT_ERROR invalid mode: ms takes S alone\r\n",
    b"ms a x\r\n": FORMAT,
}
FATAL = (
    b"set a 0 0 1\r\nxyz", b"set a 0 0 -1\r\n", b"mput a 0 0 6\r\n", b"mz a 6\r\n", b"ms a x\r\n",
)  # fmt: skip
WITH_NOREPLY = (b"flush a/x\r\n", b"incr a 1\r\n", b"delete a/open\r\n")


class Server(Data):
    """The server, with a clock, a loop and threads that run when a test says so."""

    def __init__(self, path, toml, dialect, grace_ms):
        self.toml = toml
        self.dialect = dialect
        super().__init__(path, now=START_MS + COMMANDS_AT_MS, boot=1, grace_ms=grace_ms)

    def settings_for(self, name, configured):
        return self.config.queue(name, configured)

    def open(self):
        self.config = parse(self.toml, {}, "darner.toml")
        self.options["aliases"] = self.config.aliases
        self.loop = Loop(lambda: self.now)
        super().open()
        self.clients = Clients(
            self.loop, self.broker, COMMANDS, figures=LEVELDB_FIGURES, dialect=self.dialect, keepalive=60
        )
        self.clients.reload = self.reload
        self.run()

    def call_later(self, ms, work):
        self.loop.call_later(ms / 1000, work)

    def reload(self):
        self.config = parse(self.toml, {}, "darner.toml")
        return self.broker.reconfigure(self.config.queue, self.config.aliases, [])

    def connect(self):
        return Transport(self.loop, Connection(self.clients))

    def run(self):
        """Run all calls and tasks that are due now."""
        while self.loop.run() or self.threads.tasks:
            self.threads.run_all()
        # the order of queues in the upkeep is up to the server
        for queues, by in (
            (self.broker.queues, str),
            (self.broker.sweeping.queues, lambda queue: str(queue.name)),
        ):
            ordered = {key: queues[key] for key in sorted(queues, key=by)}
            queues.clear()
            queues.update(ordered)

    def run_timers(self, until):
        while timer := self.loop.next_timer(until):
            self.now = timer.due
            timer.work()
            self.run()
        self.now = until

    def tick(self):
        self.broker.tick()
        self.run()


def toml(settings):
    """Return the configuration as the text of its file."""
    lines = []
    tables = {"queue_defaults": settings.defaults}
    tables |= {f'queues."{name.decode()}"': table for name, table in settings.queues.items()}
    for name, table in tables.items():
        lines.append(f"[{name}]")
        for key, value in table.items():
            words = {None: "never", 0: "always"} if key == "sync" else {None: "none"}
            lines.append(f"{key} = {json.dumps(words.get(value, value))}")
    lines.append("[aliases]")
    for name, targets in settings.aliases.items():
        lines.append(f'"{name.decode()}" = {json.dumps([target.decode() for target in targets])}')
    return "\n".join(lines)


# Strategies


def settings_of(name):
    """Return the strategy for the settings of a queue."""
    some = {
        "max_items": st.sampled_from([1, 2, 3]),
        "max_bytes": st.sampled_from([1, 8, 70_000]),
        "max_item_size": st.sampled_from([4, 70_000]),
        "discard_old_when_full": st.booleans(),
        "max_age": st.sampled_from([500, 2000]),
        "max_queue_age": st.sampled_from([500, 2000]),
        "durable": st.booleans(),
        "sync": st.sampled_from([None, 0, 100]),
        "open_timeout": st.sampled_from([500, 1500]),
        "max_open_reads": st.sampled_from([1, 2, 3, 3]),
        "max_attempts": st.integers(1, 3),
    }
    heir = HEIRS.get(name)
    always = {}
    if heir is not None:
        some["fanout_only"] = st.just(value=False) if b"+" in name else st.booleans()
        moves = st.sampled_from([None, heir, heir])
        for key in ("expire_to_queue", "dead_letter_queue"):
            # without these a child has its parent's
            (always if b"+" in name else some)[key] = moves
    return st.fixed_dictionaries(always, optional=some)


def run_time_settings(name):
    """Return the strategy for what is configured at run time for a queue; None is forgotten."""
    some = {
        "max_items": st.sampled_from([None, 1, 2]),
        "discard_old_when_full": st.sampled_from([None, True, True]),
        "max_age": st.sampled_from([None, 500, 2000]),
        "max_queue_age": st.sampled_from([None, 500, 500]),
        "max_open_reads": st.sampled_from([None, 1, 3]),
    }
    if b"+" not in name:
        some["fanout_only"] = st.sampled_from([None, True, True, False])
    return st.fixed_dictionaries({}, optional=some)


def without_heir(table, name):
    return {key: None if value == name else value for key, value in table.items()}


@st.composite
def configurations(draw):
    queues = draw(
        st.fixed_dictionaries(
            {b"a+x": settings_of(b"a+x")},
            optional={name: settings_of(name) for name in NAMES if name != b"a+x"},
        )
    )
    defaults = draw(settings_of(b"late")) if draw(st.integers(0, 3)) == 0 else {}
    # always the same: a reload does not bring back ids, or outdate them
    defaults |= {"dedup_window": 1500}
    aliases = {}
    if draw(st.integers(0, 2)) == 0:
        targets = [name for name in NAMES if name != ALIAS]
        aliases[ALIAS] = draw(st.lists(st.sampled_from(targets), min_size=1, max_size=3, unique=True))
        # an alias has no table, and no item moves to it
        queues = {
            name: without_heir(table, ALIAS.decode()) for name, table in queues.items() if name != ALIAS
        }
    return Config(defaults, queues, aliases)


labels = st.sampled_from([None, None, None, b"one", b"two"])
sometimes = st.sampled_from([False, False, False, True])
options = st.sampled_from(
    [
        (),
        (),
        (b"open",),
        (b"open",),
        (b"open",),
        (b"close",),
        (b"abort",),
        (b"peek",),
        (b"close", b"open"),
        (b"close", b"peek"),
    ]
)
waits = st.sampled_from([None, None, 0, 5, 250, 1000, 2000])


@st.composite
def keys(draw, names, waits=waits):
    given = draw(options)
    label = draw(labels)
    if b"abort" not in given:
        return Key(draw(names), label, given, draw(waits))
    # a cursor takes no delay
    delay = draw(st.sampled_from([None, 0, 1, 500, 1000])) if label is None else None
    return Key(draw(names), label, given, delay=delay)


def no(flag):
    return b" noreply" if flag else b""


class CommandMachine(RuleBasedStateMachine):
    @initialize(
        settings=configurations(),
        dialect=st.sampled_from(["memcached", "kestrel"]),
        grace=st.sampled_from([0, 0, 1000]),
        tiny=st.booleans(),
        names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True),
        data=st.data(),
    )
    def begin(self, settings, dialect, grace, tiny, names, data):
        # few queues and few kinds of commands, so that these meet
        self.names = st.sampled_from(names)
        some = data.draw(st.lists(st.sampled_from(self.RARE), max_size=4, unique=True))
        self.kinds = st.sampled_from(self.COMMON + tuple(some))
        self.patch = patch = pytest.MonkeyPatch()
        self.level = logging.getLogger().level
        patch.setattr(segment_file, "SEGMENT_BYTES", 1 << 14)
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(os, "fdatasync", lambda _: None)
        log_to(patch, Silence())
        patch.setattr(status, "log", Silence())
        patch.setattr(clock_runs, "log", Silence())
        patch.setattr(connection, "log", Silence())
        if tiny:
            patch.setattr("darner.journal.batch.STAGED_BYTES", 8 * _records.ITEM_BYTES)
            patch.setattr("darner.journal.live_ids.MAX_REMOVED", 2)
            patch.setattr("darner.journal.tidying.TRIM_RECORDS", 3)
        self.numbers = itertools.count(1)
        self.data = new_directory()
        self.server = Server(self.data, toml(settings), dialect, grace)
        self.model = Model(settings, self.server.now, dialect=dialect, grace=grace)
        self.settings = settings
        # by an item's order, the id that the server has told
        self.ids = {}
        self.pairs = []
        self.connect()

    def connect(self):
        """Connect until there are three clients."""
        while len(self.pairs) < 3:
            self.pairs.append((self.server.connect(), self.model.connect()))
        self.check()

    def check(self):
        for place, (transport, client) in enumerate(self.pairs):
            said, transport.sent = transport.sent, b""
            expected, client.out = client.out, b""
            self.compare(said, expected, place)
            assert (transport.closed or transport.ended) == client.closed

    def compare(self, said, expected, place):
        """Compare line by line, so that a failure is short."""
        lines, expected_lines = said.split(b"\r\n"), expected.split(b"\r\n")
        for line, expected_line in itertools.zip_longest(lines, expected_lines):
            if line == expected_line:
                continue
            start, token, end = (expected_line or b"").partition(ANY)
            if not token:
                start, token, end = re.fullmatch(rb"(.*?)(\0cas:\d+:\d+\0|)()", expected_line or b"").groups()
            word = (line or b"").removeprefix(start).removesuffix(end)
            assert token, (place, line, expected_line, said[:2000], expected[:2000])
            assert line == start + word + end, (place, line, expected_line)
            if token != ANY:
                order, attempts = map(int, token.strip(b"\0").split(b":")[1:])
                id = int(word) - (attempts << 48)
                # the same each time, and never 0
                assert self.ids.setdefault(order, id) == id
                assert 0 < id < 1 << 48

    def clean(self):
        """Replace clients whose connections have ended."""
        for transport, client in list(self.pairs):
            if client.closed:
                if not transport.closed:
                    transport.close()
                self.pairs.remove((transport, client))
        self.server.run()
        self.check()
        self.connect()

    def do(self, place, *commands):
        """Send these commands by one client, in one write."""
        note(f"{place}: {[wire[:60] for wire, _, _ in commands]}")
        transport, client = self.pairs[place]
        self.server.loop.call_soon(
            transport._protocol.data_received, b"".join(wire for wire, _, _ in commands)
        )
        self.server.run()
        self.model.send(client, commands)
        self.check()
        self.clean()

    # Commands: the bytes, the model's method, and its arguments

    def a_set(self, data):
        name, delay = data.draw(self.names), data.draw(self.DELAYS)
        number = next(self.numbers)
        size = data.draw(st.sampled_from([1, 4, 4, 5, 9, LARGE_BYTES + 1]))
        content = (b"%d" % number).rjust(size, b".")
        exptime = data.draw(st.sampled_from([0, 0, 0, 1, 2, -1, "date"]))
        if exptime == "date":
            exptime = (self.model.now + self.model.ahead) // 1000 + 1
        sync, noreply = data.draw(sometimes), data.draw(sometimes)
        id = data.draw(st.sampled_from([None, None, None, b"1", b"2", b"3"]))
        key = name + (b"/sync" if sync else b"") + (b"/delay=%d" % delay if delay else b"")
        key += b"" if id is None else b"/id=" + id
        line = b"set %s %d %d %d%s\r\n" % (key, number, exptime, len(content), no(noreply))
        return line + content + b"\r\n", "set", (name, content, number, exptime, delay, id, noreply)

    def a_key(self, data, waits=waits):
        key = data.draw(keys(self.names, waits))
        if (b"close" in key or b"abort" in key) and data.draw(st.booleans()):
            source, token = data.draw(st.sampled_from(self.tokens()))
            queue, _, label = source.partition(b"/cursor=")
            delay = None if label else key.delay
            key = replace(key, queue=queue, label=label or None, token=token, delay=delay)
        return key

    def tokens(self):
        """Return the sources of items and their tokens: of some that are held, and of two that are not."""
        return [(b"a", (0, 0, 1 << 47)), (b"b", (0, 2, 5 << 47)), *(token for _, *token in self.holds())]

    def holds(self):
        """Return what is held of which the server has told the id: who holds it, the source and the token."""
        found = []
        for place, (_, client) in enumerate(self.pairs):
            for source, held in client.held.items():
                for _, hold in held:
                    id = self.ids.get(hold.item.order)
                    if id is not None:
                        token = hold.item.order, hold.attempts, (hold.attempts << 48) + id
                        found.append((place, source, token))
        return found

    def a_get(self, data):
        key, with_cas = self.a_key(data), data.draw(st.booleans())
        return b"get%s %s\r\n" % (b"s" * with_cas, key.text), "get", (key, with_cas)

    def a_get_of_many(self, data):
        several = [self.a_key(data, st.none()) for _ in range(data.draw(st.integers(2, 4)))]
        return self.get_of(several, data.draw(sometimes), "get_many")

    def a_get_of_any(self, data):
        wait = data.draw(waits.filter(lambda wait: wait is not None))
        several = [self.a_key(data, st.just(wait)) for _ in range(data.draw(st.integers(2, 4)))]
        closing = {"options": (b"close",), "wait": wait, "delay": None}
        several = [replace(key, **closing) if b"abort" in key else key for key in several]
        return self.get_of(several, data.draw(st.booleans()), "get_any")

    @staticmethod
    def get_of(several, with_cas, method):
        line = b"get%s %s\r\n" % (b"s" * with_cas, b" ".join(key.text for key in several))
        return line, method, (several, with_cas)

    def a_monitor(self, data):
        name, seconds = data.draw(self.names), data.draw(st.integers(0, 2))
        most = data.draw(st.sampled_from([None, 0, 1, 2, 3]))
        line = b"monitor %s %d%s\r\n" % (name, seconds, b"" if most is None else b" %d" % most)
        return line, "monitor", (name, seconds, most)

    def a_confirm(self, data):
        name, count = data.draw(self.names), data.draw(st.integers(0, 3))
        return b"confirm %s %d\r\n" % (name, count), "confirm", (name, count)

    def a_delete(self, data):
        name, label, noreply = data.draw(self.names), data.draw(labels), data.draw(sometimes)
        text = name if label is None else name + b"/cursor=" + label
        return b"delete %s%s\r\n" % (text, no(noreply)), "delete", (name, label, noreply)

    def a_flush(self, data):
        name, noreply = data.draw(self.names), data.draw(sometimes)
        return b"flush %s%s\r\n" % (name, no(noreply)), "flush", (name, noreply)

    def a_configure(self, data):
        name, noreply = data.draw(self.names), data.draw(sometimes)
        changes = data.draw(run_time_settings(name))
        words = b"".join(
            b" %s=%s" % (key.encode(), b"" if value is None else str(word(key, value)).encode())
            for key, value in changes.items()
        )
        return b"configure %s%s%s\r\n" % (name, words, no(noreply)), "configure", (name, changes, noreply)

    def a_flush_of_all(self, data):
        seconds, noreply = data.draw(st.sampled_from([None, 0, 1, 2])), data.draw(sometimes)
        number = b"" if seconds is None else b" %d" % seconds
        return b"flush_all%s%s\r\n" % (number, no(noreply)), "flush_all", (seconds, noreply)

    def a_flush_of_expired(self, data):
        name = data.draw(st.sampled_from([None, *NAMES]))
        if name is None:
            return b"flush_all_expired\r\n", "flush_all_expired", ()
        return b"flush_expired %s\r\n" % name, "flush_expired", (name,)

    def a_question(self, data):
        some = b"".join(b" " + name for name in data.draw(st.lists(self.names, max_size=2)))
        words = some.split()
        return data.draw(
            st.sampled_from(
                [
                    (b"version\r\n", "version", ()),
                    (b"VERBOSITY 0\r\n", "verbosity", (False,)),
                    (b"verbosity 1 noreply\r\n", "verbosity", (True,)),
                    (b"stats\r\n", "stats", ()),
                    (b"stats\r\n", "stats", ()),
                    (b"stats reset\r\n", "stats_reset", ()),
                    (b"stats items\r\n", "stats_of_something", ()),
                    (b"dump_stats%s\r\n" % some, "dump_stats", (words,)),
                    (b"dump_config%s\r\n" % some, "dump_config", (words,)),
                    (b"status\r\n", "status", ()),
                ]
            )
        )

    def a_wrong_one(self, data):
        wire = data.draw(st.sampled_from(sorted(WRONG)))
        noreply = wire in WITH_NOREPLY and data.draw(st.booleans())
        sent = wire.replace(b"\r\n", b" noreply\r\n") if noreply else wire
        return sent, "wrong", (WRONG[wire], noreply, wire in FATAL)

    DELAYS = st.sampled_from([0, 0, 0, 1, 500, 1000])
    COMMON = (a_set, a_set, a_get, a_get, a_get_of_any)
    RARE = (
        a_get_of_many, a_monitor, a_confirm, a_delete, a_flush, a_configure, a_flush_of_all,
        a_flush_of_expired, a_question, a_wrong_one,
    )  # fmt: skip

    def draw(self, data):
        return data.draw(self.kinds)(self, data)

    def waiting(self):
        return [place for place, (_, client) in enumerate(self.pairs) if client.waiter is not None]

    def idle(self):
        return [place for place, (_, client) in enumerate(self.pairs) if client.waiter is None]

    def has_backlog(self):
        return any(client.backlog for _, client in self.pairs)

    @precondition(lambda self: self.idle())
    @rule(data=st.data())
    def command(self, data):
        self.do(data.draw(st.sampled_from(self.idle())), self.draw(data))

    @precondition(lambda self: self.idle() and self.holds())
    @rule(data=st.data(), options=st.sampled_from([(b"close",), (b"abort",), (b"close", b"open")]))
    def end_by_token(self, data, options):
        place, source, token = data.draw(st.sampled_from(self.holds()))
        if place not in self.idle():
            place = data.draw(st.sampled_from(self.idle()))
        queue, _, label = source.partition(b"/cursor=")
        key = Key(queue, label or None, options, token=token)
        self.do(place, (b"gets %s\r\n" % key.text, "get", (key, True)))

    @precondition(lambda self: self.idle())
    @rule(data=st.data())
    def figures(self, data):
        self.do(data.draw(st.sampled_from(self.idle())), (b"stats\r\n", "stats", ()))

    @precondition(lambda self: self.idle())
    @rule(data=st.data(), is_behind=st.booleans())
    def page(self, data, is_behind):
        """Look at a queue from an id on that the server has told, from the start, or from beyond the end."""
        name, label = data.draw(self.names), data.draw(labels)
        queue = self.model.queues.get(name)
        told = {0: 0, ID_STOP: ID_STOP}
        for item in () if queue is None else queue.waiting:
            if item.order in self.ids:
                told[item.order] = self.ids[item.order]
        order = data.draw(st.sampled_from(sorted(told)))
        options = b"peek", b"from=%d" % (told[order] + is_behind)
        looked = Key(name, label, options, least=order and order + is_behind)
        self.do(
            data.draw(st.sampled_from(self.idle())), (b"gets %s\r\n" % looked.text, "get", (looked, True))
        )

    @precondition(lambda self: not self.waiting())
    @rule(data=st.data(), place=st.integers(0, 2), count=st.integers(2, 6))
    def pipeline(self, data, place, count):
        self.do(place, *[self.draw(data) for _ in range(count)])

    @precondition(lambda self: not self.waiting())
    @rule(data=st.data(), place=st.integers(0, 2), delay=st.sampled_from([0, 1, 500, 1000]))
    def retry(self, data, place, delay):
        """Reserve an item and put it back with a pause: by themselves these two seldom meet."""
        name = data.draw(self.names)
        keys = Key(name, None, (b"open",)), Key(name, None, (b"abort",), delay=delay)
        self.do(place, *[(b"get %s\r\n" % key.text, "get", (key, False)) for key in keys])

    @precondition(lambda self: self.waiting() and not self.has_backlog())
    @rule(data=st.data())
    def command_behind_a_wait(self, data):
        self.do(data.draw(st.sampled_from(self.waiting())), self.draw(data))

    @precondition(lambda self: self.idle())
    @rule(data=st.data(), level=st.sampled_from([0, 0, 1, 2]))
    def change_status(self, data, level):
        word = STATUSES[level]
        self.do(data.draw(st.sampled_from(self.idle())), (b"status %s\r\n" % word, "change_status", (level,)))

    @precondition(lambda self: self.idle() and self.model.level >= READONLY)
    @rule()
    def up_again(self):
        self.do(self.idle()[0], (b"status up\r\n", "change_status", (0,)))

    @precondition(lambda self: self.idle())
    @rule(settings=configurations(), is_wrong=sometimes)
    def reload(self, settings, is_wrong):
        self.server.toml = BAD_TOML if is_wrong else toml(settings)
        error = BAD_TOML_ERROR if is_wrong else None
        self.do(self.idle()[0], (b"reload\r\n", "reload", (settings, error)))
        if is_wrong:
            self.server.toml = toml(self.settings)
        else:
            self.settings = settings

    @rule(place=st.integers(0, 2), how=st.sampled_from(["lost", "quit", "eof", "cut"]))
    def leave(self, place, how):
        transport, client = self.pairs[place]
        if client.waiter is not None:
            how = "lost" if how == "lost" else "eof"
        if how == "quit":
            self.do(place, (b"quit\r\n", "quit", ()))
            return
        if how == "cut":
            half = b"set a 0 0 70000\r\n" + b"x" * 66_000
            transport._protocol.data_received(half)
            self.model.begin_set(b"a", 70_000, len(half))
            self.server.run()
        if how == "eof":
            transport._protocol.eof_received()
            self.server.run()
            self.model.half_close(client)
        else:
            transport.close()
            self.server.run()
            self.model.lose(client)
        self.clean()

    @rule(quarters=st.integers(1, 10))
    def time_passes(self, quarters):
        for _ in range(quarters):
            at = self.server.now + TICK_MS
            for it in (self.server, self.model):
                it.run_timers(at - COMMANDS_AT_MS)
                it.tick()
                it.run_timers(at)
        self.check()
        self.clean()

    @rule(hours=st.sampled_from([1, -1, 24, -24, 8760]))
    def set_clock(self, hours):
        # After a reboot no step back: items from before it would be younger, and max_age looks at the head.
        ahead = (hours if self.server.boot == 1 else abs(hours)) * HOUR_MS
        self.server.ahead += ahead
        self.model.ahead += ahead
        for it in (self.server, self.model):
            it.tick()
        self.check()
        self.clean()

    @precondition(lambda self: not self.has_backlog())
    @rule(
        quarters=st.sampled_from([0, 0, 4]),
        how=st.sampled_from(["stop", "kill"]),
        reboots=st.booleans(),
    )
    def restart(self, quarters, how, reboots):
        server, model = self.server, self.model
        if how == "stop":
            for transport, _ in self.pairs:
                transport._protocol.drain()
            server.run()
            model.stop()
            self.check()
            server.close()
        else:
            server.end()
        server.now = model.now = server.now + quarters * TICK_MS
        if reboots:
            server.reboot(ahead=server.ahead)
        server.open()
        model.start(reboots=reboots)
        self.pairs.clear()
        self.connect()

    def teardown(self):
        if not hasattr(self, "server"):
            return
        try:
            self.server.end()
        finally:
            self.patch.undo()
            logging.getLogger().setLevel(self.level)
            shutil.rmtree(self.data, ignore_errors=True)


class HoldingMachine(CommandMachine):
    """As the other, of the commands that hold items and wait for them, and of what ends both."""

    COMMON = (CommandMachine.a_set, CommandMachine.a_get, CommandMachine.a_get_of_any)
    RARE = (CommandMachine.a_get_of_many, CommandMachine.a_monitor, CommandMachine.a_delete)
    # what is due a millisecond after the tick that serves a client may join with that tick, or with the next
    DELAYS = st.sampled_from([0, 0, 0, 500, 1000])
    OPEN = st.sampled_from([(b"open",), (b"open",), (b"close", b"open"), ()])

    # rules that the other has
    set_clock = reload = restart = change_status = up_again = None

    def a_get_to_hold(self, data):
        key = Key(data.draw(self.names), data.draw(labels), data.draw(self.OPEN), data.draw(waits))
        return b"gets %s\r\n" % key.text, "get", (key, True)

    @precondition(lambda self: not self.waiting())
    @rule(data=st.data(), place=st.integers(0, 2))
    def hold(self, data, place):
        self.do(place, self.a_set(data), self.a_get_to_hold(data))

    @precondition(lambda self: not self.has_backlog())
    @rule(data=st.data(), place=st.integers(0, 2))
    def wait_on_any(self, data, place):
        self.do(place, self.a_get_of_any(data))

    @precondition(lambda self: self.waiting() and self.idle())
    @rule(data=st.data())
    def serve(self, data):
        self.do(self.idle()[0], self.a_set(data))


TestCommands = CommandMachine.TestCase
TestHolding = HoldingMachine.TestCase
# the suite runs the same examples each time; others are for runs by hand
TestCommands.settings = profile(150, derandomize=EXAMPLES not in os.environ)
TestHolding.settings = profile(50, derandomize=EXAMPLES not in os.environ)
