"""A model of the server: the replies that clients must get, from lists, dicts and a clock, without a disk.

Written from the protocol's contract and docs/protocol.md. A command is a method of `Model`, which adds its
reply to its client's `out`. A token stands for a value that only the server knows: see `ANY` and `cas`.
"""

import itertools
from collections import Counter
from dataclasses import dataclass, field, replace

TICK_MS = 250
LARGE_BYTES = 64 << 10
FLUSH_REPLIES = {"memcached": b"OK\r\n", "kestrel": b"Flushed all queues.\r\n"}

END = b"END\r\n"
STORED = b"STORED\r\n"
CLOSE_FIRST = b"CLIENT_ERROR close current item first\r\n"
NOT_HELD = b"CLIENT_ERROR no such reserved item\r\n"
UP, READONLY, QUIESCENT = range(3)
STATUSES = (b"up", b"readonly", b"quiescent")

# the further figures of `stats`: see tests/wire/test_statistics.py
FOR_AGENTS = """
    rejected_connections cmd_flush cmd_meta delete_hits delete_misses auth_cmds auth_errors conn_yields
    pointer_size rusage_user rusage_system max_connections connection_structures accepting_conns
    threads limit_maxbytes evictions evicted_unfetched expired_unfetched listen_disabled_num
    time_in_listen_disabled_us reserved_fds reclaimed cmd_touch touch_hits touch_misses
    incr_hits incr_misses decr_hits decr_misses cas_hits cas_misses cas_badval get_expired
    get_flushed hash_bytes hash_is_expanding hash_power_level total_malloced direct_reclaims
    lru_crawler_starts crawler_items_checked crawler_reclaimed moves_to_cold moves_to_warm
    moves_within_lru
"""

# a token for any word
ANY = b"\x00any\x00"

DEFAULTS = {
    "max_items": None,
    "max_bytes": None,
    "max_item_size": None,
    "discard_old_when_full": False,
    "max_age": None,
    "expire_to_queue": None,
    "max_expire_sweep": 1000,
    "fanout_only": False,
    "max_queue_age": None,
    "durable": True,
    "sync": None,
    "open_timeout": None,
    "max_open_reads": 1,
    "max_attempts": None,
    "dead_letter_queue": None,
    "dedup_window": 300_000,
}
TIMES = ("max_age", "max_queue_age", "open_timeout", "dedup_window")


def word(key, value):
    """Return the value of a setting as `dump_config` shows it."""
    if key == "sync" and not value:
        return {None: "never", 0: "always"}[value]
    if value is None:
        return "none"
    return (
        str(value).lower() if isinstance(value, bool) else f"{value}ms" if key in (*TIMES, "sync") else value
    )


def cas(order, attempts):
    """Return the token for the cas token of an item, of which only the server knows the id."""
    return b"\x00cas:%d:%d\x00" % (order, attempts)


class Date(int):
    """A time by the wall clock."""


@dataclass
class Config:
    """The configuration: settings by queue, the defaults, and the targets of each alias."""

    defaults: dict = field(default_factory=dict)
    queues: dict = field(default_factory=dict)
    aliases: dict = field(default_factory=dict)

    def settings(self, name, configured):
        """Return what is set for a queue, with what was configured at run time."""
        parent, plus, _ = name.partition(b"+")
        found = DEFAULTS | self.defaults
        if plus:
            found |= configured.get(parent, {}) | self.queues.get(parent, {})
        found |= configured.get(name, {}) | self.queues.get(name, {})
        found["fanout_only"] &= not plus
        for key in ("expire_to_queue", "dead_letter_queue"):
            if found[key] == name.decode():
                found[key] = None
        return found


@dataclass
class Item:
    order: int
    data: bytes
    flags: int
    enqueued: int
    expires: int | None
    attempts: int = 0

    @property
    def is_large(self):
        return len(self.data) > LARGE_BYTES


@dataclass(eq=False)
class Hold:
    """A reserved item, how often it had come back, and since when it is reserved, if there is an
    `open_timeout`."""

    item: Item
    attempts: int
    since: int | None = None


@dataclass(eq=False)
class Waiter:
    fetch: object
    deliver: object
    sources: list = field(default_factory=list)
    # whether it is being served by one source, and the others that had something meanwhile
    fetching: bool = False
    missed: list = field(default_factory=list)

    def cancel(self):
        for source in list(self.sources):
            source.leave(self)


class Source:
    """A source of fetches: a queue, or a cursor over one."""

    def __init__(self):
        self.reserved = []
        self.waiters = []
        self.serving = False

    def pop(self):
        item = self.peek()
        if item is not None:
            self.take(item)
        return item

    def reserve(self):
        """Reserve the next item; None if there is none."""
        item = self.peek()
        if item is None:
            return None
        self.take(item)
        hold = Hold(item, self.attempts(item), self.held_since())
        self.reserved.append(hold)
        return hold

    def held_since(self):
        return None

    def attempts(self, item):
        """Return how often an item has come back."""
        return item.attempts

    def wait(self, waiter):
        waiter.sources.append(self)
        self.waiters.append(waiter)

    def leave(self, waiter):
        waiter.sources.remove(self)
        self.waiters.remove(waiter)

    def serve(self):
        if self.serving:
            return
        self.serving = True
        while self.waiters:
            waiter = self.waiters[0]
            if waiter.fetching:
                waiter.missed.append(self)
                break
            waiter.fetching = True
            found = waiter.fetch(self)
            waiter.fetching = False
            if found is not None:
                waiter.cancel()
                waiter.deliver(self, found)
            missed, waiter.missed = waiter.missed, []
            for source in missed:
                source.serve()
            if found is None and not missed:
                break
        self.serving = False


class Cursor(Source):
    def __init__(self, queue, label):
        super().__init__()
        self.queue = queue
        self.label = label
        self.name = queue.name + b"/cursor=" + label
        # whether a read has created the cursor, so that its place is kept
        self.is_made = False
        self.read = set()
        # expired items that it has passed, kept with the next read
        self.passed = set()
        # by order, how often items have come back here since the start
        self.returns = Counter()

    def lag(self):
        queue = self.queue
        live = queue.waiting + [hold.item for hold in queue.reserved]
        return sum(item.order not in self.read for item in live)

    def peek(self):
        queue = self.queue
        live = queue.waiting + queue.coming + [hold.item for hold in queue.reserved]
        for item in sorted(live, key=lambda item: item.order):
            if item.order not in self.read | self.passed:
                if not queue.has_expired(item):
                    return item
                self.passed.add(item.order)
        return None

    def look(self, order):
        queue = self.queue
        live = queue.waiting + queue.coming + [hold.item for hold in queue.reserved]
        unread = [item for item in live if item.order not in self.read | self.passed]
        return queue.first_from(unread, order)

    def take(self, item):
        self.is_made = True
        self.read |= {*self.passed, item.order}

    def close(self, hold):
        self.read |= self.passed
        self.reserved.remove(hold)

    def abort(self, hold):
        self.reserved.remove(hold)
        self.read.discard(hold.item.order)
        self.returns[hold.item.order] += 1
        self.serve()

    def attempts(self, item):
        return item.attempts + self.returns[item.order]

    def wait(self, waiter):
        super().wait(waiter)
        if self not in self.queue.waiting_cursors:
            self.queue.waiting_cursors.append(self)

    def leave(self, waiter):
        super().leave(waiter)
        if not self.waiters:
            self.queue.waiting_cursors.remove(self)

    def reset(self):
        self.is_made = False
        self.returns.clear()
        self.read.clear()
        self.passed.clear()
        self.reserved.clear()
        self.serve()


class Queue(Source):
    def __init__(self, model, name):
        super().__init__()
        self.model = model
        self.name = name
        self.settings = model.settings_of(name)
        self.durable = self.settings["durable"]
        self.created = model.now + model.ahead
        self.waiting = []
        self.delayed = []  # pairs: when an item is due, and the item
        self.cursors = {}
        # those at which clients wait, in the order in which they are served
        self.waiting_cursors = []
        # by the id of a set, when it was stored
        self.ids = {}
        # large items that were added just now
        self.coming = []
        # whether items have expired: a cursor ahead of the queue's readers does not know their places
        self.has_gaps = False
        self.joining = self.moving = False
        self.begin()

    def begin(self):
        """Reset the state that lasts until the server ends."""
        self.taken = 0, 0
        self.forget_use()
        self.seen = self.arrived = 0
        self.reset()

    def forget_use(self):
        # since when it is empty and unused; since when it loses items unread
        self.idle_since = self.losing_since = None
        # how many it had lost when it was read last; when an item was fetched then
        self.lost_before = None
        self.taken_before = 0

    def reset(self):
        self.total = self.expired = self.discarded = self.duplicates = 0
        self.transactions = self.canceled = self.flushes = 0

    def restart(self):
        """Leave what a kill leaves."""
        self.waiting += [hold.item for hold in self.reserved]
        self.waiting.sort(key=lambda item: item.order)
        self.reserved.clear()
        self.waiters.clear()
        self.waiting_cursors.clear()
        for cursor in self.cursors.values():
            cursor.read -= {hold.item.order for hold in cursor.reserved}
            cursor.passed.clear()
            cursor.reserved.clear()
            cursor.returns.clear()
            cursor.waiters.clear()
        # the time of its creation may not have been written
        self.created = ANY
        self.begin()

    def reboot(self):
        """Start the machine again: from then on stamps go by the wall clock."""
        date = self.model.date
        for item in self.waiting + [item for _, item in self.delayed]:
            item.enqueued, item.expires = date(item.enqueued), item.expires and date(item.expires)
        self.delayed = [(date(due), item) for due, item in self.delayed]
        self.ids = {id: date(time) for id, time in self.ids.items()}

    def configure(self):
        self.settings = self.model.settings_of(self.name)
        for hold in self.reserved:
            hold.since = self.held_since() and (hold.since or self.model.now)
        self.forget_use()

    def bytes_of(self, items):
        return sum(len(item.data) for item in items)

    def cursor(self, label):
        cursor = self.cursors.get(label)
        if cursor is None or not (cursor.is_made or cursor.waiters):
            cursor = self.cursors[label] = Cursor(self, label)
        return cursor

    @property
    def waiting_clients(self):
        return len(self.waiters) + sum(len(cursor.waiters) for cursor in self.cursors.values())

    # Enqueue

    def has_had(self, id):
        """Return whether a set with this id was stored within the window."""
        window = self.settings["dedup_window"]
        return id in self.ids and self.model.now - self.model.at(self.ids[id]) < window

    def refusal(self, size, *, asks=False, discard=False, expire=True):
        """Return why an item of this size is refused; None if it is not. Expired items make room for it,
        unless this only `asks`, or the item has still to come."""
        settings = self.settings
        if settings["max_item_size"] is not None and size > settings["max_item_size"]:
            return b"SERVER_ERROR object too large for cache\r\n"
        if not self.is_full(size):
            return None
        if self.is_full(size, []):
            return b"NOT_STORED\r\n"
        if asks and self.waiting and self.has_expired(self.waiting[0]):
            return None
        while expire and not self.moving and self.waiting and self.has_expired(self.waiting[0]):
            self.expire(self.waiting[0])
        if settings["discard_old_when_full"]:
            while discard and self.is_full(size):
                self.waiting.pop(0)
                self.discarded += 1
            return None
        return b"NOT_STORED\r\n" if self.is_full(size) else None

    def is_full(self, size, waiting=None):
        items = (self.waiting if waiting is None else waiting) + [item for _, item in self.delayed]
        most_items, most_bytes = self.settings["max_items"], self.settings["max_bytes"]
        return (most_items is not None and len(items) >= most_items) or (
            most_bytes is not None and self.bytes_of(items) + size > most_bytes
        )

    def set(self, data, flags, expires, delay, id):
        self.refusal(len(data), discard=True)
        if id is not None:
            self.ids[id] = self.model.now
        item = Item(next(self.model.orders), data, flags, self.model.now, expires)
        if delay:
            self.delay(item, delay)
        else:
            self.come(item)

    def delay(self, item, delay):
        self.delayed.append((self.model.now + delay, item))
        self.delayed.sort(key=lambda pair: self.model.at(pair[0]))

    def adopt(self, item):
        """Add an item that another queue has moved here."""
        if self.settings["discard_old_when_full"]:
            self.refusal(len(item.data), discard=True)
        self.come(Item(next(self.model.orders), item.data, item.flags, self.model.now, None))

    def come(self, item):
        self.arrived += 1
        self.total += not item.attempts
        self.waiting.append(item)
        # a large item is checked before a waiter takes it: meanwhile waiters at a cursor see it, too
        self.coming += [item] * item.is_large
        self.serve()
        for cursor in list(self.waiting_cursors):
            cursor.serve()
        del self.coming[len(self.coming) - item.is_large :]

    def join(self):
        """Move delayed items that are due to the end of the queue."""
        if self.joining:
            return
        self.joining = True
        now = self.model.now
        # those of earlier runs go by the wall clock, which may have been set since
        self.delayed.sort(key=lambda pair: self.model.at(pair[0]))
        while self.delayed and self.model.at(self.delayed[0][0]) <= now:
            _, item = self.delayed.pop(0)
            item.order, item.enqueued = next(self.model.orders), now
            self.come(item)
        self.joining = False

    # Dequeue

    def look(self, order):
        """Return the first waiting item from this place in the order of sets on."""
        return self.first_from(self.waiting, order)

    def first_from(self, items, order):
        found = [item for item in items if item.order >= order and not self.has_expired(item)]
        return min(found, key=lambda item: item.order, default=None)

    def peek(self):
        while True:
            if not self.waiting:
                self.join()
            if not self.waiting:
                return None
            item = self.waiting[0]
            if not self.has_expired(item):
                return item
            self.expire(item)

    def take(self, item):
        self.waiting.remove(item)
        self.taken = self.model.now, item.enqueued

    def held_since(self):
        return self.model.now if self.settings["open_timeout"] is not None else None

    def close(self, hold):
        self.reserved.remove(hold)

    def abort(self, hold):
        if not self.gives_up(hold):
            self.waiting.insert(0, hold.item)
            self.serve()

    def defer(self, hold, delay):
        if not self.gives_up(hold):
            # a cursor may hold it, too, under its number until now
            self.delay(replace(hold.item), delay)
            if not delay:
                self.join()

    def gives_up(self, hold):
        """Take an item back from its client; return whether it has come back too often."""
        self.reserved.remove(hold)
        self.canceled += 1
        item = hold.item
        item.attempts += 1
        most = self.settings["max_attempts"]
        if most is None or item.attempts < most:
            return False
        if self.settings["dead_letter_queue"] is None:
            self.discarded += 1
        self.move(item, "dead_letter_queue")
        return True

    def has_expired(self, item):
        now, most = self.model.now, self.settings["max_age"]
        return (item.expires is not None and self.model.at(item.expires) <= now) or (
            most is not None and self.model.at(item.enqueued) + most <= now
        )

    def expire(self, item):
        self.waiting.remove(item)
        self.move(item, "expire_to_queue")
        self.expired += 1
        self.has_gaps = True

    def move(self, item, setting):
        heir = self.settings[setting]
        if heir is not None:
            moving, self.moving = self.moving, True
            for queue in self.model.targets(heir.encode()):
                queue.adopt(item)
            self.moving = moving

    def flush(self):
        self.waiting.clear()
        self.delayed.clear()
        self.ids.clear()
        self.flushes += 1

    def flush_expired(self):
        expired = [item for item in self.waiting if self.has_expired(item)]
        for item in expired:
            self.expire(item)
        return len(expired)

    def tick(self):
        now, settings = self.model.now, self.settings
        if self.is_outdated():
            self.model.drop(self.name)
            self.model.queue_expires += 1
            return
        most = settings["open_timeout"]
        overdue = [hold for hold in self.reserved if most is not None and hold.since + most <= now]
        for hold in sorted(overdue, key=lambda hold: -hold.item.order):
            self.abort(hold)
        self.join()
        self.flush_expired()
        self.serve()

    def is_outdated(self):
        now, most = self.model.now, self.settings["max_queue_age"]
        is_alias = self.name in self.model.config.aliases
        is_used = self.waiting_clients or self.model.children_of(self.name)
        if is_used or is_alias or self.waiting or self.reserved or self.delayed:
            self.idle_since = None
        elif self.idle_since is None or self.seen != self.arrived:
            self.idle_since, self.seen = now, self.arrived
        if most is None:
            self.losing_since, self.lost_before = None, None
            return False
        lost = self.discarded + (self.expired if self.settings["expire_to_queue"] is None else 0)
        has_cursor = any(cursor.is_made for cursor in self.cursors.values())
        is_read = self.taken[0] != self.taken_before or self.reserved or has_cursor
        if is_used or is_read or self.lost_before is None:
            self.losing_since, self.lost_before, self.taken_before = None, lost, self.taken[0]
        self.lost_before = min(self.lost_before, lost)
        if b"+" in self.name and lost > self.lost_before and self.losing_since is None:
            self.losing_since = now
        since = self.idle_since, self.losing_since
        return not is_alias and any(each + most <= now for each in since if each is not None)

    def figures(self):
        return {
            "items": len(self.waiting),
            "bytes": self.bytes_of(self.waiting),
            "total_items": self.total,
            "logsize": ANY,
            "expired_items": self.expired,
            "mem_items": ANY,
            "mem_bytes": ANY,
            "age": max(0, self.taken[0] - self.model.at(self.taken[1])) if self.waiting else 0,
            "head_age": max(0, self.model.now - self.model.at(self.waiting[0].enqueued))
            if self.waiting
            else 0,
            "discarded": self.discarded,
            "duplicates": self.duplicates,
            "damaged_items": 0,
            "waiters": self.waiting_clients,
            "open_transactions": len(self.reserved),
            "transactions": self.transactions,
            "canceled_transactions": self.canceled,
            "total_flushes": self.flushes,
            "create_time": self.created,
            "delayed_items": len(self.delayed),
            "max_items": self.settings["max_items"] or 0,
            "max_bytes": self.settings["max_bytes"] or 0,
        } | {
            f"cursor_{label.decode()}_lag": ANY if self.has_gaps else cursor.lag()
            for label, cursor in sorted(self.cursors.items())
            if cursor.is_made
        }


@dataclass(frozen=True)
class Key:
    """One key of a get: the queue, or a cursor over it, the options, the time to wait in ms, and of a look
    from an id on the least order of sets that it may find."""

    queue: bytes
    label: bytes | None = None
    options: tuple = ()
    wait: int | None = None
    least: int | None = None
    # of close and abort: the order and the attempts of the item, and its token; None for the oldest one
    token: tuple | None = None
    delay: int | None = None  # of an abort

    @property
    def source(self):
        return self.queue if self.label is None else self.queue + b"/cursor=" + self.label

    @property
    def text(self):
        wait = () if self.wait is None else (b"t=%d" % self.wait,)
        delay = () if self.delay is None else (b"delay=%d" % self.delay,)
        options = self.options
        if self.token is not None:
            token = b"=%d" % self.token[2]
            options = [option + token * (option in (b"close", b"abort")) for option in options]
        return b"/".join((self.source, *options, *wait, *delay))

    def __contains__(self, option):
        return option in self.options

    @property
    def fetches(self):
        return b"open" in self or b"peek" in self or not (b"close" in self or b"abort" in self)


def is_named(token, hold):
    return token[:2] == (hold.item.order, hold.attempts)


class Client:
    def __init__(self):
        self.out = b""
        self.held = {}  # by the name of the source, oldest first: the source, and the hold
        self.backlog = []  # commands that are not run yet
        self.waiter = None
        self.timer = None
        self.late = None  # called when the time is up
        self.ended = False
        self.closed = False

    def holds(self, source):
        """Return the items it holds of a queue or cursor, but for those that the server has taken back."""
        held = [(queue, hold) for queue, hold in self.held.get(source, ()) if hold in queue.reserved]
        self.held[source] = held
        if not held:
            del self.held[source]
        return held

    def hold(self, source, hold):
        self.held.setdefault(source.name, []).append((source, hold))

    def find(self, key):
        """Return what a close or an abort is to end: the source and the hold, if it is held."""
        held = self.holds(key.source)
        return [pair for pair in held if key.token is None or is_named(key.token, pair[1])][:1]


class Monitor:
    """The command `monitor`: it reserves items as they come, and waits in turn with other clients."""

    def __init__(self, model, client, name, seconds, most):
        self.model, self.client = model, client
        self.key = Key(name)
        max_open_reads = model.settings(name)["max_open_reads"]
        most = max_open_reads if most is None else most
        self.left = min(most, max(most, max_open_reads) - len(client.holds(name)))
        self.deadline = model.now + seconds * 1000

    def go_on(self):
        model = self.model
        while self.left > 0 and model.now < self.deadline:
            if refusal := model.refusal(QUIESCENT):
                self.client.out += refusal
                return
            source = model.source(self.key, takes=True, waits=True)
            if source is None:
                break
            hold = source.reserve()
            if hold is None:
                self.wait(source)
                return
            self.send(source, hold)
        self.end()

    def wait(self, source):
        waiter = Waiter(lambda source: source.reserve(), self.deliver)
        self.model.begin_wait(self.client, waiter, [source], self.deadline - self.model.now, self.end)

    def deliver(self, source, hold):
        self.model.end_wait(self.client)
        self.send(source, hold)
        if self.left > 0:
            self.wait(source)
        else:
            self.end()

    def send(self, source, hold):
        model, client = self.model, self.client
        self.left -= 1
        model.gets += 1
        model.hits += 1
        source.transactions += 1
        client.hold(source, hold)
        model.say(client, self.key, source, hold, with_cas=False)
        client.out += END

    def end(self):
        self.client.out += END


class AnyGet:
    """A get that waits on several queues, and is served by one of them."""

    def __init__(self, model, client, keys, with_cas):
        self.model, self.client, self.with_cas = model, client, with_cas
        self.delay = keys[0].wait
        self.keys = {}
        for key in keys:
            self.keys.setdefault(key.source, key)

    def sources(self):
        for key in self.keys.values():
            source = self.model.source(key, takes=b"peek" not in key, waits=bool(self.delay))
            if source is not None:
                yield source

    def fetch(self, source):
        return self.model.fetcher(self.keys[source.name])(source)

    def go_on(self):
        sources = list(self.sources())
        for source in sources:
            if (found := self.fetch(source)) is not None:
                self.answer(source, found)
                return
        if not self.delay or not sources:
            self.miss()
            return
        waiter = Waiter(self.fetch, self.deliver)
        self.model.begin_wait(self.client, waiter, self.sources(), self.delay, self.miss)
        # what expired in one of them may have moved to one before it
        for source in list(waiter.sources):
            source.serve()

    def deliver(self, source, found):
        self.model.end_wait(self.client)
        self.answer(source, found)

    def answer(self, source, found):
        key = self.keys[source.name]
        if b"open" in key:
            (source if key.label is None else source.queue).transactions += 1
        self.model.value(self.client, key, source, found, self.with_cas)
        self.client.out += END

    def miss(self):
        self.model.value(self.client, next(iter(self.keys.values())), None, None, self.with_cas)
        self.client.out += END


class Model:
    def __init__(self, config, now, *, dialect="memcached", grace=0):
        self.config = config
        self.now = now
        # how far the wall clock is ahead of `now`, in ms
        self.ahead = 0
        self.dialect = dialect
        self.grace = grace
        self.queues = {}
        # by the name of a queue, what was set for it at run time
        self.configured = {}
        self.awaited = {}  # by name without a queue, the waiters: in a queue that no item is added to
        self.level = self.in_force = UP
        self.level_due = 0
        self.orders = itertools.count(1)
        self.begin()

    def begin(self):
        self.clients = []
        self.awaited = {}
        self.timers = []  # pairs: when it is due, and what it calls
        self.flush_timer = None
        self.soon = []
        self.queue_creates = self.queue_deletes = self.queue_expires = self.past_items = 0
        self.total_connections = self.gets = self.sets = self.peeks = self.hits = self.misses = 0
        self.bytes_read = self.noreply_errors = 0

    # Clients and time

    def connect(self):
        client = Client()
        self.clients.append(client)
        self.total_connections += 1
        return client

    def send(self, client, commands):
        """Run the commands of a client: each its bytes, the name of a method here, and its arguments."""
        client.backlog += [(name, arguments) for _, name, arguments in commands]
        self.bytes_read += sum(len(wire) for wire, _, _ in commands)
        self.run(client)
        self.settle()

    def run(self, client):
        while client.backlog and client.waiter is None and not client.closed:
            name, arguments = client.backlog.pop(0)
            getattr(self, name)(client, *arguments)

    def settle(self):
        while self.soon:
            self.soon.pop(0)()

    def later(self, delay, work):
        timer = (self.now + delay, work)
        self.timers.append(timer)
        self.timers.sort(key=lambda timer: timer[0])
        return timer

    def cancel(self, timer):
        self.timers = [other for other in self.timers if other is not timer]

    def run_timers(self, until):
        """Run the timers that are due by then."""
        while self.timers and self.timers[0][0] <= until:
            self.now, work = self.timers.pop(0)
            work()
            self.settle()
        self.now = until

    def tick(self):
        if self.now >= self.level_due:
            self.enforce(self.level)
        self.renew()
        for name in sorted(self.queues):
            if name in self.queues:
                self.queues[name].tick()
        self.settle()

    def begin_wait(self, client, waiter, sources, delay, time_out):
        for source in sources:
            source.wait(waiter)
        client.waiter = waiter

        def late():
            waiter.cancel()
            self.end_wait(client)
            time_out()

        client.late = late
        client.timer = self.later(delay, late)
        if client.ended:
            late()

    def half_close(self, client):
        """Close a client's sending side: its commands are run, and wait for nothing."""
        client.ended = True
        if client.waiter is not None:
            client.late()
        self.settle()
        self.lose(client)

    def end_wait(self, client):
        self.cancel(client.timer)
        client.waiter = client.timer = None
        self.soon.append(lambda: self.run(client))

    def lose(self, client):
        """End a client's connection."""
        client.closed = True
        if client.waiter is not None:
            client.waiter.cancel()
            self.cancel(client.timer)
            client.waiter = None
        if client in self.clients:
            self.clients.remove(client)
        held, client.held = client.held, {}
        for pairs in held.values():
            for source, hold in sorted(pairs, key=lambda pair: -pair[1].item.order):
                if hold in source.reserved:
                    source.abort(hold)
        self.settle()

    def stop(self):
        """Shut the server down: waiting clients get a reply, and reserved items go back."""
        clients = list(self.clients)
        for client in clients:
            if client.waiter is not None:
                client.waiter.cancel()
                client.out += END
                client.waiter = None
        for client in clients:
            self.lose(client)

    def at(self, time):
        """Return a time by the monotonic clock."""
        return time - self.ahead if isinstance(time, Date) else time

    def date(self, time):
        """Return a time by the wall clock."""
        return time if isinstance(time, Date) else Date(time + self.ahead)

    def start(self, *, reboots):
        """Start the next process."""
        self.in_force = self.level
        for name, queue in list(self.queues.items()):
            if queue.durable:
                queue.restart()
                if reboots:
                    queue.reboot()
            else:
                del self.queues[name]
                self.configured.pop(name, None)
        self.renew()
        self.begin()

    # Queues

    def queue(self, name):
        if name not in self.queues:
            queue = self.queues[name] = Queue(self, name)
            self.queue_creates += 1
            awaited = self.awaited.pop(name, None)
            if awaited is not None and awaited.waiting_clients:
                queue.transactions = awaited.transactions
                self.hand_over(awaited, queue)
        return self.queues[name]

    def place(self, name):
        """Return the queue at which clients wait for one that does not exist."""
        if name not in self.awaited or not self.awaited[name].waiting_clients:
            self.awaited[name] = Queue(self, name)
        return self.awaited[name]

    def hand_over(self, queue, heir):
        for waiter in list(queue.waiters):
            queue.leave(waiter)
            heir.wait(waiter)
        for cursor in list(queue.waiting_cursors):
            for waiter in list(cursor.waiters):
                cursor.leave(waiter)
                heir.cursor(cursor.label).wait(waiter)

    def shown(self):
        """Return the queues that statistics show."""
        return self.queues | {name: queue for name, queue in self.awaited.items() if queue.waiting_clients}

    def find(self, name):
        return None if name in self.config.aliases else self.queues.get(name)

    def settings(self, name):
        return self.queues[name].settings if name in self.queues else self.settings_of(name)

    def settings_of(self, name):
        return self.config.settings(name, self.configured)

    def renew(self):
        """Have queues take over their settings."""
        for queue in self.queues.values():
            if queue.settings != self.settings_of(queue.name):
                queue.configure()

    def children(self, name):
        if name in self.config.aliases:
            return self.config.aliases[name]
        return self.children_of(name)

    def children_of(self, name):
        return sorted(other for other in self.queues if other.startswith(name + b"+"))

    def targets(self, name):
        """Return the queues that a set goes to."""
        found = []
        for target in self.config.aliases.get(name, [name]):
            queue = self.queue(target)
            if not queue.settings["fanout_only"]:
                found.append(queue)
            found += [self.queue(child) for child in self.children(target)]
        return list(dict.fromkeys(found))

    def source(self, key, *, takes, waits):
        name = key.queue
        if name in self.config.aliases:
            return None
        if name in self.queues or (takes and key.label is None and b"+" in name):
            queue = self.queue(name)
        elif waits:
            queue = self.place(name)
        else:
            return None
        return queue if key.label is None else queue.cursor(key.label)

    def drop(self, name):
        queue = self.find(name)
        if queue is None:
            return
        del self.queues[name]
        self.configured.pop(name, None)
        self.queue_deletes += 1
        self.past_items += queue.total
        queue.reserved.clear()
        for cursor in queue.cursors.values():
            cursor.reserved.clear()
        if queue.waiting_clients:
            self.hand_over(queue, self.place(name))
            if b"+" in name:
                self.queue(name)

    def refusal(self, status):
        if self.in_force >= status:
            return b"SERVER_ERROR refused: the server is %s\r\n" % STATUSES[self.in_force]
        return None

    # Commands

    def reply(self, client, reply, *, noreply=False, is_error=False):
        if noreply:
            self.noreply_errors += is_error
        else:
            client.out += reply

    def wrong(self, client, reply, noreply, fatal):
        """Refuse a wrong command with this reply."""
        self.reply(client, reply, noreply=noreply, is_error=True)
        if fatal:
            self.lose(client)

    def quit(self, client):
        self.lose(client)

    def set(self, client, name, data, flags, exptime, delay, id, noreply):
        self.sets += 1
        reply = self.store(name, data, flags, exptime, delay, id)
        self.reply(client, reply, noreply=noreply, is_error=reply != STORED)

    def begin_set(self, name, size, sent):
        """Begin the set of a large item that will stay incomplete."""
        self.sets += 1
        self.bytes_read += sent
        self.targets_of(name, size, expire=False)

    def targets_of(self, name, size, id=None, *, expire=True):
        """Return the queues that an item of this size goes to, or the error that refuses it. Those that have
        had its id are not asked."""
        if refusal := self.refusal(READONLY):
            return refusal
        targets = self.targets(name)
        lacking = [queue for queue in targets if not queue.has_had(id)]
        refusals = {queue.refusal(size, asks=True) for queue in lacking} - {None}
        if len(refusals) > 1:
            # which comes first is up to what of the queues is in memory
            return ANY + b"\r\n"
        refusals = refusals or {queue.refusal(size, expire=expire) for queue in lacking} - {None}
        if refusals:
            return refusals.pop()
        if not targets and size > LARGE_BYTES:
            # a large item passes through the memory of a queue that is not durable, though no queue takes it
            queue = self.queue(self.config.aliases.get(name, [name])[0])
            most = queue.settings["max_bytes"]
            if not queue.durable and most is not None and size > most:
                return b"NOT_STORED\r\n"
        return targets

    def store(self, name, data, flags, exptime, delay, id):
        targets = self.targets_of(name, len(data), id)
        if isinstance(targets, bytes):
            return targets
        expires = None
        if exptime < 0:
            expires = 0
        elif 0 < exptime <= 2_592_000:
            expires = self.now + exptime * 1000
        elif exptime:
            expires = Date(exptime * 1000)
        had = [queue for queue in targets if queue.has_had(id)]
        for queue in targets:
            if queue in had:
                queue.duplicates += 1
            else:
                queue.set(data, flags, expires, delay, id)
        return STORED

    def get(self, client, key, with_cas):
        if key.token is not None and not client.find(key):
            client.out += NOT_HELD
            return
        if self.is_to_close(key, len(client.holds(key.source))):
            client.out += CLOSE_FIRST
            return
        refusal = self.refusal(QUIESCENT)
        if refusal:
            self.release(client, key)
            client.out += refusal if key.fetches else END
            return
        takes = key.fetches and b"peek" not in key
        source = self.source(key, takes=takes, waits=key.fetches and bool(key.wait))
        found = self.fetch(client, key, source)

        def answer(source, found):
            self.value(client, key, source, found, with_cas)
            client.out += END

        if found is None and source is not None and key.fetches and key.wait:

            def deliver(source, found):
                self.end_wait(client)
                answer(source, found)

            waiter = Waiter(self.fetcher(key), deliver)
            self.begin_wait(client, waiter, [source], key.wait, lambda: answer(None, None))
        else:
            answer(source, found)

    def is_to_close(self, key, held):
        if not held or b"close" in key or b"abort" in key or b"peek" in key:
            return False
        return b"open" not in key or held >= self.settings(key.queue)["max_open_reads"]

    def release(self, client, key):
        for source, hold in client.find(key):
            if b"close" in key:
                source.close(hold)
            elif key.delay is not None:
                source.defer(hold, key.delay)
            elif b"abort" in key:
                source.abort(hold)

    def fetch(self, client, key, source):
        self.release(client, key)
        if source is None or not key.fetches:
            return None
        if b"open" in key:
            (source if key.label is None else source.queue).transactions += 1
        return self.fetcher(key)(source)

    def fetcher(self, key):
        if b"open" in key:
            return lambda source: source.reserve()
        if key.least is not None:
            return lambda source: source.look(key.least)
        return lambda source: source.peek() if b"peek" in key else source.pop()

    def value(self, client, key, source, found, with_cas):
        """Count a fetch and reply with its item."""
        if b"peek" in key:
            self.peeks += 1
        elif key.fetches:
            self.gets += 1
            self.hits += found is not None
            self.misses += found is None
        if found is None:
            return
        if b"open" in key:
            client.hold(source, found)
        self.say(client, key, source, found, with_cas)

    def say(self, client, key, source, found, with_cas):
        item, attempts = found, 0
        if isinstance(found, Hold):
            item, attempts = found.item, found.attempts
        elif found is not None:
            attempts = source.attempts(item)
        text = key.queue if self.dialect == "kestrel" else key.text
        number = b" " + cas(item.order, attempts) if with_cas else b""
        client.out += b"VALUE %s %d %d%s\r\n%s\r\n" % (text, item.flags, len(item.data), number, item.data)

    def is_wrong(self, client, keys, *, gives_each):
        """Return the error of a get of several keys that asks to end what its client does not hold, or holds
        too much."""
        held = {key.source: [hold for _, hold in client.holds(key.source)] for key in keys}
        for key in keys:
            holds = held[key.source]
            if key.token is not None:
                named = [hold for hold in holds if hold is not None and is_named(key.token, hold)]
                if not named:
                    return NOT_HELD
                holds.remove(named[0])
            elif self.is_to_close(key, len(holds)):
                return CLOSE_FIRST
            elif b"close" in key or b"abort" in key:
                del holds[:1]
            if b"open" in key and gives_each:
                holds.append(None)
        return None

    def get_many(self, client, keys, with_cas):
        if wrong := self.is_wrong(client, keys, gives_each=True):
            client.out += wrong
            return
        refusal = self.refusal(QUIESCENT)
        if refusal and any(key.fetches for key in keys):
            client.out += refusal
            return
        for key in keys:
            if key.token is not None and b"close" in key:
                self.release(client, key)
        for key in keys:
            takes = key.fetches and b"peek" not in key
            source = None if refusal else self.source(key, takes=takes, waits=False)
            self.value(client, key, source, self.fetch(client, key, source), with_cas)
        client.out += END

    def get_any(self, client, keys, with_cas):
        if wrong := self.is_wrong(client, keys, gives_each=False):
            client.out += wrong
            return
        for key in keys:
            self.release(client, key)
        if not any(key.fetches for key in keys):
            client.out += END
        elif refusal := self.refusal(QUIESCENT):
            client.out += refusal
        else:
            AnyGet(self, client, [key for key in keys if key.fetches], with_cas).go_on()

    def monitor(self, client, name, seconds, most):
        Monitor(self, client, name, seconds, most).go_on()

    def confirm(self, client, name, count):
        held = client.holds(name)[:count]
        for queue, hold in held:
            queue.close(hold)
        client.out += END if held else b"ERROR\r\n"

    def delete(self, client, name, label, noreply):
        refusal = self.refusal(READONLY)
        if refusal is None and label is None:
            self.drop(name)
        elif refusal is None and self.find(name) is not None:
            self.queues[name].cursor(label).reset()
        self.reply(client, refusal or b"DELETED\r\n", noreply=noreply, is_error=refusal is not None)

    def flush(self, client, name, noreply):
        refusal = self.refusal(READONLY)
        if refusal is None and (queue := self.find(name)) is not None:
            queue.flush()
        self.reply(client, refusal or END, noreply=noreply, is_error=refusal is not None)

    def flush_all(self, client, seconds, noreply):
        refusal = self.refusal(READONLY)
        if refusal is None:
            self.cancel(self.flush_timer)
            if seconds:
                self.flush_timer = self.later(seconds * 1000, self.flush_later)
            else:
                self.flush_each()
        reply = refusal or FLUSH_REPLIES[self.dialect]
        self.reply(client, reply, noreply=noreply, is_error=refusal is not None)

    def flush_later(self):
        if self.refusal(READONLY) is None:
            self.flush_each()

    def flush_each(self):
        for queue in self.queues.values():
            queue.flush()

    def flush_expired(self, client, name):
        queue = self.find(name)
        client.out += self.refusal(READONLY) or b"%d\r\n" % (
            queue.flush_expired() if queue is not None else 0
        )

    def flush_all_expired(self, client):
        refusal = self.refusal(READONLY)
        queues = [] if refusal else [self.queues[name] for name in sorted(self.queues)]
        client.out += refusal or b"%d\r\n" % sum(queue.flush_expired() for queue in queues)

    def version(self, client):
        client.out += b"VERSION %s\r\n" % ANY

    def verbosity(self, client, noreply):
        self.reply(client, b"OK\r\n", noreply=noreply)

    def stats(self, client):
        figures = dict.fromkeys(("pid", "uptime", "time", "version", "status"), ANY)
        figures |= {
            "curr_items": sum(len(queue.waiting) for queue in self.queues.values()),
            "total_items": self.past_items + sum(queue.total for queue in self.queues.values()),
            "bytes": sum(queue.bytes_of(queue.waiting) for queue in self.queues.values()),
            "curr_connections": len(self.clients),
            "total_connections": self.total_connections,
            "cmd_get": self.gets,
            "cmd_set": self.sets,
            "cmd_peek": self.peeks,
            "get_hits": self.hits,
            "get_misses": self.misses,
            "bytes_read": self.bytes_read,
            "bytes_written": ANY,
            "queue_creates": self.queue_creates,
            "queue_deletes": self.queue_deletes,
            "queue_expires": self.queue_expires,
            "noreply_errors": self.noreply_errors,
            "queues_out_of_service": 0,
        }
        figures |= dict.fromkeys(FOR_AGENTS.split(), ANY)
        for name, queue in sorted(self.shown().items()):
            figures |= {f"queue_{name.decode()}_{key}": value for key, value in queue.figures().items()}
        client.out += b"".join(b"STAT %s %s\r\n" % line for line in self.lines(figures)) + END

    def stats_reset(self, client):
        self.queue_creates = self.queue_deletes = self.queue_expires = self.past_items = 0
        self.total_connections = self.gets = self.sets = self.peeks = self.hits = self.misses = 0
        self.bytes_read = self.noreply_errors = 0
        for queue in self.shown().values():
            queue.reset()
        client.out += b"RESET\r\n"

    def stats_of_something(self, client):
        client.out += END

    @staticmethod
    def lines(figures):
        return [
            (key.encode(), value if isinstance(value, bytes) else str(value).encode())
            for key, value in figures.items()
        ]

    def dump_stats(self, client, names):
        shown = self.shown()
        for name in names or sorted({*shown, *self.config.aliases}):
            queue = None if name in self.config.aliases else shown.get(name)
            figures = queue.figures() if queue is not None else {}
            if children := self.children(name):
                figures["children"] = b",".join(children)
            self.dump(client, name, figures)
        client.out += END

    def dump_config(self, client, names):
        for name in names or sorted(self.queues):
            settings = dict(self.settings(name))
            if name in self.queues:
                settings["durable"] = self.queues[name].durable
            self.dump(client, name, {key: word(key, value) for key, value in settings.items()})
        client.out += END

    def configure(self, client, name, changes, noreply):
        """Change what is set for a queue; None forgets a setting."""
        reply = self.configured_reply(name, changes)
        self.reply(client, reply, noreply=noreply, is_error=reply != b"OK\r\n")

    def configured_reply(self, name, changes):
        if refusal := self.refusal(READONLY):
            return refusal
        if name in self.config.aliases:
            return b"CLIENT_ERROR %s is an alias; set something for the queues it names\r\n" % name
        own = self.config.queues.get(name, {})
        for key, value in changes.items():
            if value is not None and own.get(key, value) != value:
                text = f"{key} is {word(key, own[key])} by the configuration file, which decides"
                return f"CLIENT_ERROR {text}\r\n".encode()
        self.queue(name)
        values = self.configured.get(name, {}) | changes
        self.configured[name] = {key: value for key, value in values.items() if value is not None}
        self.renew()
        return b"OK\r\n"

    def dump(self, client, name, figures):
        lines = b"".join(b"  %s=%s\r\n" % line for line in self.lines(figures))
        client.out += b"queue '%s' {\r\n%s}\r\n" % (name, lines)

    def status(self, client):
        client.out += STATUSES[self.level].upper() + b"\r\n"

    def change_status(self, client, level):
        self.level = level
        self.level_due = self.now + self.grace
        if level < self.in_force or not self.grace:
            self.enforce(level)
        client.out += END

    def enforce(self, level):
        """Put a status into force; waiting clients whose fetches it refuses are told so."""
        self.in_force = level
        refusal = self.refusal(QUIESCENT)
        for client in self.clients:
            if refusal and client.waiter is not None:
                client.waiter.cancel()
                self.end_wait(client)
                client.out += refusal

    def reload(self, client, config, error):
        if error is not None:
            client.out += b"SERVER_ERROR %s\r\n" % error
            return
        self.config = config
        self.renew()
        client.out += b"Reloaded config.\r\n"
