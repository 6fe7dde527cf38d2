"""Queues on real journals against plain lists, through full disks, failing writes, kills and power cuts.

A number stands for an item, and is the item's flags. The model knows the state of each queue and the states
before it: a kill must leave the last one, a power cut one that is not older than the last sync. Items with
too many attempts are moved to the queue `dead`: none may be lost on the way. Some items are set on two
queues: they are in both or in none. Threads run their tasks in any order.
"""

import collections
import contextlib
import gc
import itertools
import random
from pathlib import Path

import pytest
from brokers import log_to
from doubles import Client, Disk, Offload, Silence, begin_upload, record, unmap
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from machines import new_directory, profile
from queue_model import WINDOW_MS, Hold, Passing, Twin
from system import Killed, System

from darner import _records
from darner.config.settings import QueueSettings
from darner.environment.environment import Environment
from darner.errors import JournalError, NotReadyError, StartError
from darner.journal import lookup, reading, segment_file, wal
from darner.journal.blob import BlobReader
from darner.journal.layout import is_state_key
from darner.queues import browsing, item_window, moving
from darner.queues import upload as upload_module
from darner.queues.broker import Broker
from darner.queues.fanout import Fanout
from darner.queues.queue import Queue

# a machine may be ten times as slow as another
pytestmark = pytest.mark.timeout(600)

DEAD = b"dead"
NAMES = (b"work", b"play", DEAD)
MAX_ATTEMPTS = 2
BOTH = NAMES[:2]
CHUNK_BYTES = 400  # a smaller item is never a large one when it is moved
SEGMENT_BYTES = 1024
PAGE_BYTES = 256
RESERVE_BYTES = 64
IDS = (b"1", b"2", b"3")


class QueueMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.patch = patch = pytest.MonkeyPatch()
        patch.setattr(segment_file, "SEGMENT_BYTES", SEGMENT_BYTES)
        patch.setattr(wal, "LONG_SEGMENTS", 3)
        patch.setattr(item_window, "WINDOW_BYTES", 3 * _records.ITEM_BYTES)
        patch.setattr(item_window, "READ_ITEMS", 2)
        patch.setattr(browsing, "READ_ITEMS", 2)
        patch.setattr(browsing, "PASSED_AT_ONCE", 2)
        patch.setattr(browsing, "IDS_AT_ONCE", 2)
        patch.setattr(moving, "CHUNK_BYTES", CHUNK_BYTES)
        patch.setattr(upload_module, "CHUNK_BYTES", CHUNK_BYTES)
        patch.setattr("darner.journal.batch.STAGED_BYTES", 8 * _records.ITEM_BYTES)
        patch.setattr("darner.journal.live_ids.MAX_REMOVED", 2)
        patch.setattr("darner.journal.tidying.DEAD_RECORDS", 4)
        patch.setattr("darner.journal.tidying.TRIM_RECORDS", 3)
        patch.setattr("darner.journal.tidying.COMPACT_RECORDS", 40)
        patch.setattr("darner.journal.dedup_ids.TRIM_IDS", 2)
        patch.setattr("darner.journal.id_filter.LAYERS_BYTES", (4, 8))
        self.blobs = []  # open readers
        patch.setattr("darner.journal.lookup.BlobReader", lambda *args: self._note_blob(BlobReader(*args)))
        self.log = Silence()
        log_to(patch, self.log)
        self.disk = Disk(patch)
        self.data = new_directory()
        self.system = System(patch, self.data, PAGE_BYTES)
        self.disk.full = self.system.has_no_room
        # The segments of a group that is larger than one are made beforehand, and then only renamed.
        self.system.has_names = lambda: self.broker.storage.log.segment.in_group
        self.now = 1_000_000
        self.boot = 1  # the number of the machine's start
        self.items = {}  # number: data, in a list if the item is a large one, and when it expires
        # (twin, number): when the delayed item has been due, each with its place in the order of delays
        self.dues = collections.defaultdict(dict)
        self.places = itertools.count()
        self.twins = {name: Twin() for name in NAMES}
        # (twin, index, other, index, number): if a power cut leaves the state of `twin` at this index, or a
        # later one, so it does of the other twin; and if that one held the number, it has it
        self.joint = []
        self._start()

    # The process

    def _note_blob(self, blob):
        self.blobs.append(blob)
        return blob

    def _start(self, calls=0):
        while True:
            self.offload = Offload()
            self.broker = Broker(
                self.data,
                Environment(
                    lambda: self.now,
                    self.offload,
                    boot=self.boot,
                    free_bytes=lambda: 0 if self.system.full else 1 << 30,
                    reserve_bytes=lambda: RESERVE_BYTES,
                ),
                self._settings_for,
            )
            self.holds, self.uploads, self.readers, self.clients = [], [], [], []
            self.system.calls_left = calls
            try:
                self.broker.open()
                return
            except Killed:
                self._die()
                calls = 0
            except StartError:
                assert self.system.sync_fails or self.system.full
                self.heal()
                self._die()
            finally:
                self.system.calls_left = 0

    @staticmethod
    def _settings_for(name, configured):
        if name == DEAD:
            return QueueSettings(dedup_window_ms=WINDOW_MS)
        return QueueSettings(
            max_attempts=MAX_ATTEMPTS, dead_letter_queue=DEAD.decode(), dedup_window_ms=WINDOW_MS
        )

    def _die(self):
        self.system.calls_left = 0
        self.offload.tasks.clear()
        self.disk.failures.clear()
        self.disk.drop()
        if hasattr(self.broker, "_lock"):
            self.broker._lock.close()
        if hasattr(self.broker, "storage"):
            unmap(self.broker.storage.log)
        while self.blobs:
            self.blobs.pop()._file.close()
        self.system.end_process()

    def _restart(self, may_hold, calls=0, *, is_torn=False):
        self.log.lines.clear()
        self._start(calls)
        said = [fields["reason"] for event, fields in self.log.lines if event == "log damaged"]
        assert is_torn or not said, said
        # a queue that was closed cleanly has not been opened yet
        refuses, self.disk.refuses = self.disk.refuses, False
        for name, twin in self.twins.items():
            twin.unsure = may_hold[name]
            if name in self.broker.out_of_service:
                assert refuses or self.system.full, self.broker.out_of_service[name]
            else:
                self._find(name, twin)
        self.disk.refuses = refuses

    def _find(self, name, twin):
        """Compare a queue with the states that may be found, and go on from what it holds."""
        if name not in self.broker.queues:
            # a queue of which nothing was logged does not exist
            assert any(not may for may in twin.unsure)
            twin.found(None, {}, {}, self.places)
            return
        journal = self.broker.queues[name].journal
        with self._readable(journal):
            numbers, delayed = self._numbers(journal, twin), self._delayed(journal, twin)
        found = {id: lookup.when_set(journal, journal.dedup_ids.digest(id)) for id in IDS}
        ids = {id: set_ms for id, set_ms in found.items() if set_ms}
        held = frozenset((*numbers, *(-number for number in delayed), *ids.items()))
        assert any(twin.may_be(held, may, self.now) for may in twin.unsure)
        twin.found(numbers, delayed, ids, self.places)

    @contextlib.contextmanager
    def _readable(self, journal):
        """Let the model open LevelDB in any case."""
        refuses, self.disk.refuses = self.disk.refuses, False
        try:
            with self.system.with_room():
                if (journal.path / "CURRENT").exists():
                    journal.database.open(again=True)
                yield
        finally:
            self.disk.refuses = refuses

    def _stored_delayed(self, journal):
        """The delayed items with their keys, flushed ones among them."""
        open_database = journal.database.open if journal.database.exists else None
        return list(journal.delayed._in_order(journal.records, open_database, 0, []))

    def _delayed(self, journal, twin):
        """Return when each delayed item is due, by number."""
        delayed = {}
        entries = sorted(self._stored_delayed(journal), key=lambda entry: entry[1].id)
        # the first ones may have been flushed
        for key, item in entries[len(entries) - journal.delayed.items :]:
            self._is_item(item, item.flags, twin)
            delayed[item.flags] = int.from_bytes(key[1:9], "big")
            assert delayed[item.flags] in self.dues[twin, item.flags]
            if item.flags in twin.attempts:
                assert item.attempts == twin.attempts[item.flags]
        assert journal.delayed.items == len(delayed)
        assert journal.delayed.bytes == sum(map(self._size, delayed))
        return delayed

    def _numbers(self, journal, twin):
        items = lookup.kept_items(journal) + self._unread(journal)
        for item in items:
            self._is_item(item, item.flags, twin)
            if item.flags in twin.attempts:
                assert item.attempts == twin.attempts[item.flags]
        numbers = [item.flags for item in items]
        assert twin.order.fits(numbers, is_exact=twin.is_order_exact)
        assert (journal.state.items, journal.state.bytes) == (len(items), sum(item.size for item in items))
        return numbers

    @staticmethod
    def _unread(journal):
        items, _ = reading.scan(journal, journal.next_unread, 1 << 20, 1 << 30)
        return items

    def _is_item(self, item, number, twin):
        data, expires = self.items[number]
        assert item.flags == number
        assert item.expires_ms == (0 if number in twin.moved else expires)
        assert item.data == (None if isinstance(data, list) else data)
        assert item.size == self._size(number)

    def _size(self, number):
        data = self.items[number][0]
        return len(data[0] if isinstance(data, list) else data)

    # The model

    def _queue(self, name):
        """Return the queue, or None if it cannot be created now, and its twin."""
        twin = self.twins[name]
        try:
            queue = self.broker.queue(name)
        except JournalError:
            assert twin.unsure or (self._is_troubled and not twin.exists)
            return None, twin
        assert not twin.unsure
        if not twin.exists:
            twin.exists = True
            twin.changed()
        return queue, twin

    @property
    def _is_troubled(self):
        queues = self.broker.queues.values()
        return (
            self.system.full
            or self.system.sync_fails
            or self.disk.refuses
            or not self.broker.space.may_move  # the free space was not checked since
            or self.broker.storage.log.segment.refusal is not None
            or any(queue.journal.failing is not None for queue in queues)
        )

    def _tried(self, do, *args):
        """Return whether a call succeeds; it may fail only while the disk is in trouble."""
        try:
            do(*args)
        except JournalError:
            assert self._is_troubled
            return False
        return True

    def _expired(self, number, twin):
        return number not in twin.moved and 0 < self.items[number][1] <= self.now

    def _head(self, twin):
        """Return the number of the next item to be fetched."""
        joining = [number for number in self._in_turn(twin) if twin.delayed[number] <= self.now]
        return next((number for number in twin.waiting + joining if not self._expired(number, twin)), None)

    def _reconcile(self, name, fetched=None):
        """Note which expired items are removed, and which due items have joined the queue, before `fetched`
        was."""
        twin, queue = self.twins[name], self.broker.queues.get(name)
        if queue is None or not (
            any(self._expired(number, twin) for number in twin.waiting)
            or any(due <= self.now for due in twin.delayed.values())
        ):
            return
        journal = queue.journal
        with self._readable(journal):
            waiting = {item.flags: item.id for item in (*queue.window, *self._unread(journal))}
            delayed = {item.flags for _, item in self._stored_delayed(journal)}
        if fetched is not None:
            waiting[fetched.flags] = fetched.id
        expired = {number for number in twin.waiting if number not in waiting}
        assert all(self._expired(number, twin) for number in expired)
        joined = [number for number in self._in_turn(twin) if number not in delayed]
        ids = [waiting[number] for number in joined if number in waiting]
        assert ids == sorted(ids)
        gone = {number for number in joined if number not in waiting}
        assert all(self._expired(number, twin) for number in gone)
        if len(expired) + len(joined) + len(gone) > 1:
            twin.history.append(Passing(twin.held, expired, joined, gone))
        twin.waiting = [number for number in twin.waiting if number not in expired]
        for number in joined:
            assert twin.delayed.pop(number) <= self.now
            if number in waiting:
                twin.order[number] = next(self.places)
                twin.waiting.append(number)
        twin.changed()

    def _in_turn(self, twin):
        """Return the delayed items in the order in which they are due."""

        def turn(number):
            due = twin.delayed[number]
            return due, self.dues[twin, number][due]

        return sorted(twin.delayed, key=turn)

    def _number(self, data, exptime=0):
        number = len(self.items) + 1
        self.items[number] = (data, self.now + exptime * 1000 if exptime > 0 else -exptime)
        return number

    def _sync(self):
        """Have a client wait for the log's sync."""
        client = Client()
        marks = {name: (twin, twin.history, len(twin.history) - 1) for name, twin in self.twins.items()}
        self.clients.append((client, marks))
        self.broker.storage.log.sync(client, 0)
        self._told()

    def _told(self):
        waiting = []
        for client, marks in self.clients:
            if client.held:
                waiting.append((client, marks))
            elif not client.failed:
                for twin, history, mark in marks.values():
                    if twin.history is history:
                        twin.promised = max(twin.promised, mark)
        self.clients = waiting

    # Operations

    names = st.sampled_from(NAMES)

    @rule(name=names, size=st.integers(0, 9), exptime=st.sampled_from([0, 0, 0, 5, -1]), sync=st.booleans())
    def push(self, name, size, exptime, sync):
        queue, twin = self._queue(name)
        if queue is None:
            return
        number = self._number(b"x" * size, exptime)
        # a rule may have killed the process meanwhile
        twin.order[number], twin.attempts[number] = next(self.places), 0
        if self._tried(queue.push, record(b"x" * size), number, exptime):
            twin.has(number, twin.order[number])
            self._wait_if_crowded(queue)
            if sync:
                self._sync()

    def _wait_if_crowded(self, queue):
        if queue.journal.is_backlogged:
            client = Client()
            client.hold()
            queue.journal.held_back.append(client)
            self.clients.append((client, {}))

    @rule(size=st.sampled_from([0, 9, 400]), sync=st.booleans())
    def push_both(self, size, sync):
        """Push to two queues as the set to a queue with a child does."""
        both = [self._queue(name) for name in BOTH]
        if any(queue is None for queue, _ in both):
            return
        number = self._number(b"x" * size)
        for _, twin in both:
            twin.order[number], twin.attempts[number] = next(self.places), 0
        if self._tried(Fanout([queue for queue, _ in both]).push, record(b"x" * size), number, 0, 0):
            self._both_have([twin for _, twin in both], number)
            for queue, _ in both:
                self._wait_if_crowded(queue)
            if sync:
                self._sync()

    def _both_have(self, twins, number):
        for twin in twins:
            twin.has(number, next(self.places))
        for one, other in itertools.permutations(twins, 2):
            self._implies(one, other)

    def _implies(self, twin, other, number=None):
        """Note that the state of `twin` may be found only together with that of the other one."""
        self.joint.append((twin, len(twin.history) - 1, other, len(other.history) - 1, number))

    @rule(
        name=names,
        id=st.sampled_from(IDS),
        delay_s=st.sampled_from([0, 0, 0, 2]),
        both=st.sampled_from([False, False, True]),
        sync=st.booleans(),
    )
    def push_once(self, name, id, delay_s, both, sync, size=9):
        """Push with an id, which some of the queues may have had."""
        found = [self._queue(name) for name in (BOTH if both and name in BOTH else (name,))]
        if any(queue is None for queue, _ in found):
            return
        queues = [queue for queue, _ in found]
        lacking = [twin for _, twin in found if not twin.has_had(id, self.now)]
        number = self._number(b"x" * size)
        for twin in lacking:
            twin.order[number], twin.attempts[number] = next(self.places), 0
        stored = []

        def push():
            stored.extend(Fanout(queues).push(record(b"x" * size), number, 0, delay_s * 1000, id))

        if not self._tried(push):
            return
        assert [self.twins[queue.name] for queue in stored] == lacking
        for twin in lacking:
            twin.ids[id] = self.now
        if not delay_s:
            self._both_have(lacking, number)
        elif len(lacking) == 1:
            self._is_delayed(lacking[0], number, delay_s)
        else:
            self._both_are_delayed(lacking, number, delay_s)
        for queue in queues:
            self._wait_if_crowded(queue)
        if sync:
            self._sync()

    def _both_are_delayed(self, twins, number, delay_s):
        for twin in twins:
            self._is_delayed(twin, number, delay_s)
        for one, other in itertools.permutations(twins, 2):
            self._implies(one, other)

    @rule(name=names, exptime=st.sampled_from([0, 0, 3]), delay_s=st.integers(1, 9), sync=st.booleans())
    def push_delayed(self, name, exptime, delay_s, sync):
        queue, twin = self._queue(name)
        if queue is None:
            return
        number = self._number(b"later", exptime)
        twin.attempts[number] = 0
        if self._tried(queue.push_delayed, record(b"later"), number, exptime, delay_s * 1000):
            self._is_delayed(twin, number, delay_s)
            if sync:
                self._sync()

    def _is_delayed(self, twin, number, delay_s):
        twin.delayed[number] = due = self.now + delay_s * 1000
        self.dues[twin, number][due] = twin.order[number] = next(self.places)
        twin.changed()

    @rule(name=names, count=st.integers(2, 12), size=st.sampled_from([3, 200]))
    def push_many(self, name, count, size):
        for _ in range(count):
            self.push(name=name, size=size, exptime=0, sync=False)

    @rule(
        name=names,
        sizes=st.lists(st.integers(1, CHUNK_BYTES), min_size=1, max_size=5),
        run=st.booleans(),
        both=st.sampled_from([False, False, True]),
    )
    def begin_upload(self, name, sizes, run, both):
        queue, twin = self._queue(name)
        if queue is None:
            return
        names = BOTH if both and name in BOTH else (name,)
        try:
            upload = begin_upload(queue, sum(sizes), lambda: [self._target(name) for name in names])
        except JournalError:
            assert self._is_troubled
            return
        number = self._number([b""])
        chunks = [b"%-*d" % (CHUNK_BYTES, number)] * len(sizes[1:]) + [b"y" * sizes[0]]
        for chunk in chunks:
            if not self._tried(upload.write, chunk):
                upload.abandon()
                return
            if run:
                self.threads_run()
        twins = [self.twins[name] for name in names]
        self.uploads.append((upload, twins, twin.generation, number, b"".join(chunks)))

    def _target(self, name):
        """Return an existing queue and its twin; None if there is none."""
        queue, _ = self._queue(name)
        if queue is None:
            raise JournalError("it is out of service")
        return queue

    @precondition(lambda self: self.uploads)
    @rule(
        which=st.integers(0, 9), abandon=st.booleans(), delay_s=st.sampled_from([0, 0, 2]), sync=st.booleans()
    )
    def end_upload(self, which, abandon, delay_s, sync):
        self._end_upload(which % len(self.uploads), abandon=abandon, delay_s=delay_s, sync=sync)

    def _end_upload(self, index, *, abandon, delay_s=0, sync):
        upload, twins, generation, number, content = self.uploads.pop(index)
        twin = self.twins[upload.queue.name]
        if abandon:
            upload.abandon()
            return
        self.items[number] = ([content], 0)
        if len(twins) > 1:
            delay_s = 0

        def done(error):
            if error is not None:
                assert self._is_troubled or twin.generation != generation
                return
            assert twin.generation == generation
            if not sync:
                for each in twins:
                    each.unsynced.add(number)
            if delay_s:
                twin.attempts[number] = 0
                self._is_delayed(twin, number, delay_s)
            else:
                self._both_have(twins, number)
            if sync:
                self._sync()

        upload.finish(number, 0, done, sync=sync, delay_ms=delay_s * 1000)

    @rule(name=names, sizes=st.lists(st.integers(1, CHUNK_BYTES), min_size=1, max_size=3), sync=st.booleans())
    def push_large(self, name, sizes, sync):
        before = len(self.uploads)
        self.begin_upload(name=name, sizes=sizes, run=False, both=False)
        if len(self.uploads) > before:
            self._end_upload(before, abandon=False, sync=sync)
            self.threads_run()

    @rule(name=names, how=st.sampled_from(["pop", "pop", "reserve", "reserve", "peek"]), read=st.booleans())
    def fetch(self, name, how, read):
        queue, twin = self._queue(name)
        if queue is None:
            return
        number = self._head(twin)
        try:
            item = (self._pop if how == "pop" else getattr(Queue, how))(queue)
        except JournalError:
            assert self._is_troubled
            self._reconcile(name)
            return
        if number is None:
            assert item is None
            self._reconcile(name)
            return
        self._is_item(item, number, twin)
        self._reconcile(name, item)
        if how != "peek":
            twin.waiting.remove(number)
        if how == "reserve":
            hold = twin.reserved[number] = Hold(queue, item, number)
            if not read:
                item.forget_data()
            self.holds.append((hold, twin))
        if item.blob and (read or how == "peek"):
            self.readers.append((queue.open_blob(item), number))
        twin.changed()

    @rule(name=names)
    def browse(self, name):
        """Page through a queue, which stays as it is, and ask how long its head has waited."""
        queue, twin = self._queue(name)
        if queue is None:
            return
        waiting, next_unread = list(queue.window), queue.journal.next_unread
        found, id = [], 1
        try:
            while (item := self._look(queue, id)) is not None:
                assert item.id >= id
                self._is_item(item, item.flags, twin)
                found.append(item.flags)
                id = item.id + 1
        except JournalError:
            assert self._is_troubled
            return
        numbers = [number for number in twin.waiting if not self._expired(number, twin)]
        assert found == sorted(numbers, key=twin.order.get)
        assert (list(queue.window), queue.journal.next_unread) == (waiting, next_unread)
        with self._readable(queue.journal):
            head = next(iter(waiting or self._unread(queue.journal)), None)
            assert queue.head_age_ms == (0 if head is None else self.now - head.enqueued_ms)

    @staticmethod
    def _look(queue, id):
        while True:
            try:
                return queue.peek_from(id)
            except NotReadyError as error:
                if error.next_id <= id:
                    raise
                id = error.next_id

    @staticmethod
    def _pop(queue):
        """Fetch an item as a plain `get` does."""
        item = queue.take()
        if item is not None and item.blob:
            try:
                queue.close(item)
            except JournalError:
                queue.give_back(item)
                raise
        return item

    @rule(name=names, count=st.integers(2, 6), seed=st.integers(0, 99))
    def work_off(self, name, count, seed):
        """Reserve some items and close most of them, in any order, some before all is written."""
        before = len(self.holds)
        for _ in range(count):
            self.fetch(name=name, how="reserve", read=False)
        taken = list(range(before, len(self.holds)))
        chance = random.Random(seed)
        chance.shuffle(taken)
        holds = [self.holds[index] for index in taken[: chance.randrange(len(taken) + 1)]]
        written = chance.randrange(len(holds) + 1)
        for hold in holds[:written]:
            self._end_hold(self.holds.index(hold), "close")
        self.tick(count=5)
        self.threads_run()
        for hold in holds[written:]:
            self._end_hold(self.holds.index(hold), "close")

    @rule(name=names, count=st.integers(1, 3), delay_s=st.sampled_from([0, 1, 3]))
    def retry(self, name, count, delay_s):
        """Reserve some items, then put them back with a pause."""
        before = len(self.holds)
        for _ in range(count):
            self.fetch(name=name, how="reserve", read=False)
        for hold in self.holds[before:]:
            self._end_hold(self.holds.index(hold), "defer", delay_s)

    @precondition(lambda self: self.holds)
    @rule(
        which=st.integers(0, 9),
        how=st.sampled_from(["close", "abort", "defer", "defer"]),
        delay_s=st.sampled_from([0, 1, 3]),
    )
    def end_hold(self, which, how, delay_s):
        self._end_hold(which % len(self.holds), how, delay_s)

    def _end_hold(self, index, how, delay_s=1):
        hold, twin = self.holds[index]
        is_held = twin.reserved.get(hold.number) is hold
        if how != "close" and is_held and self._is_to_move(hold):
            if self._move(hold, twin, how):
                self._forget_hold(index)
                number = None if hold.number in twin.unsynced else hold.number
                self._implies(twin, self.twins[DEAD], number)
        elif how == "defer":
            self._defer(index, delay_s, is_held=is_held)
        elif how == "abort":
            self._abort(index, is_held=is_held)
        elif self._tried(hold.queue.close, hold.item):
            self._forget_hold(index)

    def _forget_hold(self, index):
        """Note that an item is reserved no more, if it still was."""
        hold, twin = self.holds.pop(index)
        if twin.reserved.get(hold.number) is hold:
            del twin.reserved[hold.number]
            twin.changed()

    def _abort(self, index, *, is_held):
        hold, twin = self.holds[index]
        if is_held and self._is_troubled:
            twin.attempts.pop(hold.number, None)
        hold.queue.abort(hold.item)
        if is_held:
            twin.waiting.insert(0, hold.number)
            self._count_attempt(twin, hold.number)
        self._forget_hold(index)

    def _defer(self, index, delay_s, *, is_held):
        hold, twin = self.holds[index]
        try:
            hold.queue.defer(hold.item, delay_s * 1000)
        except JournalError:
            assert self._is_troubled or self.broker.space.refusal is not None
            return
        if not is_held:
            self._forget_hold(index)
            return
        del self.holds[index], twin.reserved[hold.number]
        self._count_attempt(twin, hold.number)
        self._is_delayed(twin, hold.number, delay_s)
        self._reconcile(hold.queue.name)

    @staticmethod
    def _count_attempt(twin, number):
        """Count an attempt, if it is certain how many there were."""
        if number in twin.attempts:
            twin.attempts[number] += 1

    @staticmethod
    def _is_to_move(hold):
        return hold.queue.name != DEAD and hold.item.attempts + 1 >= MAX_ATTEMPTS

    def _move(self, hold, twin, how):
        """Move an item with too many attempts; return whether it was moved, which is not tried in trouble."""
        number, dead = hold.number, self.twins[DEAD]
        # of an item that was set on both, one is enough there: they have the same number
        if self._is_troubled or dead.unsure or (dead.held and {number, -number} & dead.held):
            return False
        if not dead.exists:
            dead.exists = True
            dead.changed()
        # a rule may have killed the process meanwhile
        dead.order[number], dead.attempts[number] = next(self.places), 0
        dead.moved.add(number)
        if hold.item.blob:
            dead.unsynced.add(number)
        if how == "abort":
            hold.queue.abort(hold.item)
        else:
            hold.queue.defer(hold.item, 1000)
        assert not any(item.flags == number for item in hold.queue.window)
        dead.has(number, dead.order[number])
        return True

    @precondition(lambda self: self.readers)
    @rule()
    def read(self):
        """Read a large item that was opened when it was fetched, whatever has happened since."""
        reader, number = self.readers.pop(0)
        content = b""
        while (data := reader.read(lambda: None)) != b"":
            content += data or b""
            if data is None:
                self.threads_run()
        reader.close()
        assert content == self.items[number][0][0]

    @rule(name=names)
    def flush(self, name):
        queue, twin = self._queue(name)
        if queue is not None and self._tried(queue.flush):
            twin.waiting.clear()
            twin.delayed.clear()
            twin.ids.clear()
            twin.changed()

    @rule(name=names)
    def delete(self, name):
        twin = self.twins[name]
        if twin.exists and not twin.unsure and self._tried(self.broker.delete, name):
            twin.waiting.clear()
            twin.reserved.clear()
            twin.delayed.clear()
            twin.ids.clear()
            twin.exists = False
            twin.generation += 1
            twin.changed()

    @rule(seconds=st.integers(1, 6))
    def time_passes(self, seconds):
        self.now += seconds * 1000

    # The disk

    @rule()
    def sync(self):
        self._sync()

    @rule(
        failures=st.lists(st.sampled_from(["before", "after", None]), max_size=3),
        refuses=st.booleans(),
        full=st.one_of(st.none(), st.tuples(st.integers(0, 40), st.integers(0, 20))),
        sync_fails=st.booleans(),
    )
    def trouble(self, failures, refuses, full, sync_fails):
        self.disk.failures[:] = failures
        self.disk.refuses, self.system.sync_fails = refuses, sync_fails
        self.system.room, self.system.room_in_reserve = full or (None, 0)

    @rule()
    def heal(self):
        self.trouble([], refuses=False, full=None, sync_fails=False)

    @rule(seed=st.integers(0, 1 << 16))
    def write_back(self, seed):
        """Have the kernel write some pages back."""
        self.system.write_back(random.Random(seed))

    @rule(count=st.integers(1, 6))
    def tick(self, count):
        for _ in range(count):
            self.broker.opening.retry()
            for name, twin in self.twins.items():
                if twin.unsure and name not in self.broker.out_of_service:
                    self._find(name, twin)
            self.broker.tick()
            self._told()
            for name in NAMES:
                self._reconcile(name)

    @precondition(lambda self: self.offload.tasks)
    @rule(which=st.integers(0, 3))
    def thread_runs(self, which=0):
        """Run a task, not always the oldest one: there are several threads."""
        self.offload.run(min(which, len(self.offload.tasks) - 1))
        self._told()

    @rule()
    def threads_run(self):
        while self.offload.tasks:
            self.thread_runs()

    @rule()
    def all_is_written(self):
        """Without trouble, the directories end up with live items alone, and the log with nothing."""
        self.heal()
        for upload, *_ in self.uploads:
            upload.abandon()
        self.uploads.clear()
        for _ in range(200):
            self.tick(count=1)
            self.threads_run()
            broker = self.broker
            busy = broker.storage.committer._active or broker.out_of_service or broker.deletion._retired
            if not (
                busy
                or broker.storage.log.segment.refusal
                or broker.space.refusal
                or broker.deletion._unremoved
            ):
                break
        else:
            raise AssertionError("it does not come to rest")
        assert not self.clients
        for name, twin in self.twins.items():
            if twin.exists:
                self._holds_nothing_else(self.broker.queues[name], twin)
        self.broker.storage.log.roll()
        self.threads_run()
        assert len(list((self.data / ".log").glob("[0-9]*"))) == 1
        assert {path.name for path in self.data.iterdir() if path.name[0] != "."} <= {
            name.decode() for name in self.broker.queues
        }

    def _holds_nothing_else(self, queue, twin):
        journal = queue.journal
        files = set()
        live = set()
        delayed = self._delayed(journal, twin)
        ids = {b"a": set(), b"i": set()}
        if not journal.path.exists():
            assert not twin.held
            return
        for key, stored in journal.database.open().iterator():
            assert key[:1] in b"aikxcdn"
            assert len(key) < 25 or key >= journal.dedup_ids.first_key
            if len(key) == 9:
                ids[key[:1]].add(key[1:])
            if key[:1] in b"id" and not is_state_key(key):
                item = _records.decode_item(b"i" + key[-8:], stored)
                if key[:1] == b"i":
                    live.add(item.flags)
                if item.blob:
                    files.add(journal.blobs.path_of(item.blob))
                    if item.flags in live or item.flags in delayed:  # others were flushed
                        self._reads_whole(journal, item)
        assert live == {*twin.waiting, *twin.reserved}
        assert ids[b"a"] <= ids[b"i"]
        assert set((journal.path / "blobs").glob("*")) == files

    def _reads_whole(self, journal, item):
        offload = Offload()
        reader = BlobReader(journal.blobs.path_of(item.blob), item, offload)
        assert reader.read(lambda: None) is None
        offload.run()
        assert reader.read(lambda: None) == self.items[item.flags][0][0]
        reader.close()

    # The end of the process

    @rule()
    def restart(self):
        for upload, *_ in self.uploads:
            upload.abandon()
        self.threads_run()
        self.broker.close()
        self.disk.failures.clear()
        self._restart({name: twin.may_hold(power_cut=False) for name, twin in self.twins.items()})

    @rule(seed=st.integers(0, 99), tasks=st.integers(0, 3), calls=st.integers(0, 25))
    def kill(self, seed, tasks, calls):
        """Kill the process between two operations, and perhaps the next one while it starts."""
        self._kill(random.Random(seed), tasks)
        self._restart({name: twin.may_hold(power_cut=False) for name, twin in self.twins.items()}, calls)

    def _kill(self, chance, tasks):
        """End the process; some tasks are done, but not reported."""
        for work, _ in chance.sample(self.offload.tasks, min(tasks, len(self.offload.tasks))):
            with contextlib.suppress(Exception):
                work()
        self._die()

    @rule(
        name=names,
        what=st.sampled_from(["push", "push_once", "push_both", "flush", "delete", "tick", "abort", "defer"]),
        calls=st.integers(1, 6),
    )
    def kill_amid(self, name, what, calls):
        """Kill the process during an operation, which is then done as a whole or not at all."""
        before = {name: twin.may_hold(power_cut=False) for name, twin in self.twins.items()}
        marks = {name: len(twin.history) for name, twin in self.twins.items()}
        parts = getattr(self, f"_parts_of_{what}", lambda _: {})(name)
        number = len(self.items) + 1
        self.system.calls_left = calls
        with contextlib.suppress(Killed):
            getattr(self, f"_do_{what}", getattr(self, what, None))(name)
        self.system.calls_left = 0
        for other in NAMES:
            self._reconcile(other)
        may_hold = {
            name: before[name] + twin.history[marks[name] :] + twin.unsure
            for name, twin in self.twins.items()
        }
        for each, states in parts.items():
            if not self.twins[each].unsure:
                may_hold[each] += states
        self._die()
        self._restart(may_hold)
        if parts and not any(self.twins[each].unsure for each in parts):
            found = [self.twins[each].held or frozenset() for each in parts]
            if what == "push_both":
                assert len({number in held for held in found}) == 1
            elif len(parts) > 1:
                (number,) = frozenset.difference(*parts[name])
                assert any(number in held for held in found)

    def _held(self, name):
        """Return what a queue holds; a new one may exist and be empty."""
        return self.twins[name].held or frozenset()

    def _do_push(self, name):
        self.push(name=name, size=300, exptime=0, sync=False)

    def _parts_of_push(self, name):
        held = self._held(name)
        return {name: [held, held | {len(self.items) + 1}]}

    def _do_push_once(self, name):
        self.push_once(name=name, id=IDS[0], delay_s=0, both=False, sync=False, size=300)

    def _parts_of_push_once(self, name):
        """The item and its id are there, or neither is."""
        if self.twins[name].has_had(IDS[0], self.now):
            return {}
        held = self._held(name)
        return {name: [held, held | {len(self.items) + 1, (IDS[0], self.now)}]}

    def _do_push_both(self, _):
        self.push_both(size=300, sync=False)

    def _parts_of_push_both(self, _):
        return self._parts_of_push(BOTH[0]) | self._parts_of_push(BOTH[1])

    def _parts_of_flush(self, name):
        return {name: [frozenset(self.twins[name].reserved)]}

    def _parts_of_delete(self, name):
        return {name: [None]}

    def _do_tick(self, _):
        self.tick(count=5)
        self.threads_run()

    def _abortable(self, name):
        """Return the place and the number of a queue's first reserved item that still exists."""
        for index, (hold, twin) in enumerate(self.holds):
            if twin is self.twins[name] and twin.reserved.get(hold.number) is hold:
                return index, hold.number
        return None, 0

    def _do_abort(self, name):
        index, number = self._abortable(name)
        if index is not None:
            self.twins[name].attempts.pop(number, None)
            self._end_hold(index, "abort")

    def _do_defer(self, name):
        index, _ = self._abortable(name)
        if index is not None:
            self._end_hold(index, "defer")

    def _parts_of_defer(self, name):
        index, number = self._abortable(name)
        if index is None:
            return {}
        hold, _ = self.holds[index]
        if self._is_to_move(hold):
            return self._parts_of_abort(name)
        held = self._held(name)
        self.dues[self.twins[name], number][self.now + 1000] = next(self.places)
        # for it may have been done or not
        self.twins[name].attempts.pop(number, None)
        return {name: [held, held - {number} | {-number}]}

    def _parts_of_abort(self, name):
        index, number = self._abortable(name)
        if index is None or name == DEAD:
            return {}
        held, dead = self._held(name), self._held(DEAD)
        return {name: [held, held - {number}], DEAD: [dead, dead | {number}]}

    def _lose_power(self, chance, *, in_order):
        self.system.lose_power(chance, in_order=in_order)
        self.boot += 1

    @rule(
        seed=st.integers(0, 1 << 16),
        tasks=st.integers(0, 3),
        calls=st.integers(0, 25),
        in_order=st.booleans(),
        again=st.booleans(),
    )
    def power_cut(self, seed, tasks, calls, in_order, again):
        """Cut the power, and perhaps again while the next process starts."""
        chance = random.Random(seed)
        self._kill(chance, tasks)
        has_failed = self.system.has_failed
        is_torn = not in_order or has_failed or self.system.has_written_back
        may_hold, joint, twins = {}, self.joint, self.twins
        shifts = {twin: twin.promised for twin in twins.values() if not twin.unsure}
        for name, twin in twins.items():
            twin.attempts.clear()
            twin.is_order_exact = False
            twin.may_miss |= twin.unsynced
            may_hold[name] = twin.may_hold(power_cut=True)
            twin.history, twin.promised = list(may_hold[name]), 0
        self.joint = []
        self._lose_power(chance, in_order=in_order)
        if again:
            self._start(max(1, calls))
            self._die()
            is_torn = True
            self._lose_power(chance, in_order=in_order)
        self._restart(may_hold, calls, is_torn=is_torn)
        domains = {
            twin: {at for at, may in enumerate(may_hold[name]) if twin.may_be(twin.held, may, self.now)}
            for name, twin in twins.items()
            if twin in shifts and not twin.unsure
        }
        if not has_failed:  # else what the log may have lost was written to LevelDB
            self._fit_together(domains, joint, shifts)
        for twin in twins.values():
            if not twin.unsure:  # its state is on the disk
                del twin.history[:-1]

    def _fit_together(self, domains, joint, shifts):
        """Check that the states found fit together: each queue's is one of its history, and states that
        depend on each other agree. `domains` has for each twin the places in its history that fit."""
        pairs = [
            (twin, index - shifts[twin], other, at - shifts[other], number)
            for twin, index, other, at, number in joint
            if twin in domains and other in domains
        ]
        while pairs:
            before = sum(map(len, domains.values()))
            for twin, index, other, at, number in pairs:
                is_there = number is None or number in (other.held or ())
                late = {
                    each
                    for each in domains[other]
                    if each >= at and (is_there or number not in (other.history[each] or ()))
                }
                if not late:
                    domains[twin] = {each for each in domains[twin] if each < index}
                elif all(each >= index for each in domains[twin]):
                    domains[other] = late
            assert all(domains.values()), "something was lost, or is there in part"
            if sum(map(len, domains.values())) == before:
                return

    @invariant()
    def counts_are_exact(self):
        for name, twin in self.twins.items():
            assert (name in self.broker.queues) == (twin.exists and not twin.unsure)
            if name in self.broker.queues:
                queue = self.broker.queues[name]
                assert queue.items == len(twin.waiting)
                assert queue.waiting_bytes == sum(map(self._size, twin.waiting))
                assert len(queue.reserved) == len(twin.reserved)

    def teardown(self):
        try:
            self.all_is_written()
            self.restart()
            for name, twin in self.twins.items():
                while twin.exists and self._head(twin):
                    self.fetch(name=name, how="pop", read=False)
                assert not twin.exists or self.broker.queue(name).pop() is None
            self.broker.close()
        finally:
            self._die()
            self.patch.undo()
            self.system.remove()


TestQueue = QueueMachine.TestCase
TestQueue.settings = profile(250)


class Worst:
    """The worst chances: each directory is as at its last fsync, and each segment has lost its first page."""

    def __init__(self):
        first, *others = range(SEGMENT_BYTES // PAGE_BYTES)
        self._pages = itertools.cycle([0.9 if page == first else 0.1 for page in (first, *others)])

    def choice(self, options):
        return 0.5 if 0.5 in options else options[0]

    def randrange(self, *_):
        return 0

    def random(self):
        return next(self._pages)

    def sample(self, tasks, count):
        return tasks[:count]


@pytest.fixture
def machine():
    machine = QueueMachine()
    yield machine
    machine._die()
    machine.patch.undo()
    machine.system.remove()


def segments(machine):
    """Return the numbers of the segments, by inode."""
    paths = (machine.data / ".log").glob("[0-9]*")
    return {path.stat().st_ino: int(path.name) for path in paths}


def test_a_segment_that_is_used_again_has_its_old_name_back_after_no_power_cut(machine, monkeypatch):
    """Else the log would end there, and synced frames behind it would be lost."""
    fill = {"name": b"play", "exptime": 0, "sync": False}
    machine.push(size=3, **fill)
    machine.all_is_written()
    machine.push_many(name=b"play", count=6, size=200)
    # from now on synced changes are in the log alone
    machine.trouble([], refuses=True, full=None, sync_fails=False)
    machine.push(name=b"work", size=5, exptime=0, sync=True)
    machine.threads_run()
    assert machine.twins[b"work"].promised
    synced = segments(machine)
    old = min(synced, key=synced.get)
    assert synced[old] < max(synced.values())
    for _ in range(200):
        machine.push(size=200, **fill)  # without a tick, which would sync the log
        machine.threads_run()
        if segments(machine).get(old, 0) > synced[old]:
            break
    assert segments(machine)[old] > max(synced.values()), "it was not used again"
    machine.push_many(name=b"play", count=3, size=200)
    machine.heal()
    monkeypatch.setattr(random, "Random", lambda _: Worst())
    machine.power_cut(seed=0, tasks=0, calls=0, in_order=False, again=False)
    assert len(machine.twins[b"work"].waiting) == 1


def test_many_examples_leave_no_descriptor_open():
    """Kills and power cuts at any call leak none; a long run would have none left."""
    before = open_descriptors()
    run_state_machine_as_test(
        QueueMachine,
        settings=settings(
            TestQueue.settings, max_examples=30, derandomize=True, database=None, phases=[Phase.generate]
        ),
    )
    assert open_descriptors() == before


def open_descriptors():
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
def test_twenty_thousand_examples():
    for _ in range(20):  # a run keeps all of its examples in memory
        run_state_machine_as_test(QueueMachine, settings=settings(TestQueue.settings, max_examples=1000))
