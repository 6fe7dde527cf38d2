"""Queues on real journals against plain lists, through full disks, failing writes, kills and power cuts.

A number stands for an item; it travels as the item's flags. The model knows what each queue holds, and what
it has held: a kill must leave the last of these, a power cut one that is not older than the last sync.
"""

import contextlib
import errno
import itertools
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from doubles import Client, Disk, Offload, Silence, let_go, record
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from darner import _proto, journal, queue, wal
from darner import broker as broker_module
from darner.blob import BlobReader
from darner.broker import Broker
from darner.errors import JournalError, StartError
from darner.journal import is_state_key
from darner.queue import Queue

NAMES = (b"work", b"play")
CHUNK_BYTES = 16
SEGMENT_BYTES = 1024
PAGE_BYTES = 256


class Killed(BaseException):
    """The process is no more."""


class System:
    """The system's calls, any of which may be a process's last, and what of its files is on the disk."""

    CALLS = (
        "open", "mkdir", "rename", "unlink", "rmdir", "fsync", "fdatasync", "pwrite", "posix_fallocate",
    )  # fmt: skip

    def __init__(self, patch):
        self.calls_left = 0  # until the process is killed; 0 is never
        self.full = False
        self.sync_fails = False
        self.on_disk = {}  # of segments by inode, of blobs by path
        self.lost = {}  # of segments, what was in memory when a sync failed
        for name in self.CALLS:
            patch.setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name, call):
        before = getattr(self, "_" + name, lambda *_: None)

        def wrapped(*args, **options):
            if self.calls_left:
                self.calls_left -= 1
                if not self.calls_left:
                    raise Killed
            before(*args)
            return call(*args, **options)

        return wrapped

    def _posix_fallocate(self, *_):
        if self.full:
            raise OSError(errno.ENOSPC, "no space left")

    def _fdatasync(self, descriptor):
        inode = os.fstat(descriptor).st_ino
        content = os.pread(descriptor, 2 * SEGMENT_BYTES, 0)
        if self.sync_fails:
            self.lost[inode] = content
            raise OSError(errno.EIO, "cannot write")
        # what was lost once is not written again unless it changes
        lost, before = self.lost.get(inode, b""), self.before(inode, content)
        self.on_disk[inode] = b"".join(
            before[page] if lost[page] == content[page] else content[page] for page in pages(content)
        )

    def _pwrite(self, descriptor, *_):
        self.lost.pop(os.fstat(descriptor).st_ino, None)

    def _fsync(self, descriptor):
        self.on_disk[str(Path(f"/proc/self/fd/{descriptor}").readlink())] = True

    def before(self, inode, content):
        return self.on_disk.get(inode, b"").ljust(len(content), b"\0")

    def lose_power(self, data, chance):
        """Cut the files of a data directory back to what is on the disk, and some of the rest."""
        for path in sorted((data / ".log").iterdir()):
            content, share = path.read_bytes(), chance.choice((0, 0.5, 1))
            before = self.before(path.stat().st_ino, content)
            with path.open("r+b") as file:
                for page in pages(content):
                    file.write(content[page] if chance.random() < share else before[page])
        for path in sorted(data.glob("*/blobs/*"), key=lambda path: path.stat().st_ino):
            if str(path) not in self.on_disk:
                with path.open("r+b") as file:
                    file.truncate(chance.randrange(path.stat().st_size + 1))
        self.on_disk.clear()
        self.lost.clear()
        for path in (data / ".log").iterdir():
            self.on_disk[path.stat().st_ino] = path.read_bytes()
        for path in data.glob("*/blobs/*"):
            self.on_disk[str(path)] = True


def pages(content):
    return [slice(at, at + PAGE_BYTES) for at in range(0, len(content), PAGE_BYTES)]


class Hold:
    """An item that somebody has reserved."""

    def __init__(self, queue, item, number):
        self.queue, self.item, self.number = queue, item, number


class Twin:
    """What a queue should hold."""

    def __init__(self):
        self.waiting = []
        self.reserved = {}
        self.delayed = {}  # when they are due
        self.exists = False
        # what it has held since the last power cut, None if it was not there
        self.history = [None]
        # the oldest of these that may be found after the next
        self.promised = 0
        # while it is out of service, what may be found once it is back
        self.unsure = []
        self.generation = 0

    def changed(self):
        self.history.append(self.held)

    @property
    def held(self):
        """The numbers of its items, those of delayed ones below 0; None if there is no queue."""
        delayed = (-number for number in self.delayed)
        return frozenset((*self.waiting, *self.reserved, *delayed)) if self.exists else None

    def may_hold(self, *, power_cut):
        if power_cut:
            return self.history[self.promised :] + self.unsure
        return self.unsure or self.history[-1:]

    def found(self, numbers, delayed):
        """These are there, in order; None if there is no queue."""
        self.exists = numbers is not None
        self.waiting = list(numbers or ())
        self.reserved = {}
        self.delayed = dict(delayed)
        self.unsure = []
        self.generation += 1
        self.changed()


class QueueMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.patch = patch = pytest.MonkeyPatch()
        patch.setattr(wal, "SEGMENT_BYTES", SEGMENT_BYTES)
        patch.setattr(wal, "LONG_SEGMENTS", 3)
        patch.setattr(queue, "WINDOW_BYTES", 3 * _proto.ITEM_BYTES)
        patch.setattr(queue, "READ_ITEMS", 2)
        patch.setattr(queue, "CHUNK_BYTES", CHUNK_BYTES)
        patch.setattr(journal, "STAGED_BYTES", 8 * _proto.ITEM_BYTES)
        patch.setattr(journal, "MAX_GONE", 2)
        patch.setattr(journal, "DEAD_RECORDS", 4)
        patch.setattr(journal, "TRIM_RECORDS", 3)
        patch.setattr(journal, "COMPACT_RECORDS", 40)
        patch.setattr(broker_module, "log", Silence())
        self.disk = Disk(patch)
        self.system = System(patch)
        memory = Path("/dev/shm")
        self.data = Path(tempfile.mkdtemp(prefix="darner-model", dir=memory if memory.exists() else None))
        self.now = 1_000_000
        self.items = {}  # number: data, or a list of it if in chunks, and when it expires
        self.order = {}  # number: its place among all, in the order of setting
        self.attempts = {}  # number: how often it came back, if that is known for sure
        self.unsynced = set()  # large items that nobody has synced
        self.may_miss = set()  # of these, those that were there when the power went
        self.due = {}  # number: when a delayed item is due, and the order in which they were set
        self.due_place = {}
        self.places = itertools.count()
        self.twins = {name: Twin() for name in NAMES}
        self._start()

    # The process

    def _start(self, calls=0):
        while True:
            self.offload = Offload()
            self.broker = Broker(self.data, lambda: self.now, self.offload)
            self.holds, self.uploads, self.readers, self.clients = [], [], [], []
            self.system.calls_left = calls
            try:
                self.broker.open()
                return
            except Killed:
                self._die()
                calls = 0
            except StartError:
                assert self.system.sync_fails
                self.system.sync_fails = False
                self._die()
            finally:
                self.system.calls_left = 0

    def _die(self):
        self.system.calls_left = 0
        self.disk.failures.clear()
        self.disk.drop()
        log = getattr(self.broker, "log", None)
        if log is not None:
            let_go(log)
        if hasattr(self.broker, "_lock"):
            self.broker._lock.close()

    def _restart(self, may_hold, calls=0):
        self._start(calls)
        # a queue that was at rest has not been opened yet
        refuses, self.disk.refuses = self.disk.refuses, False
        for name, twin in self.twins.items():
            twin.unsure = may_hold[name]
            if name in self.broker.broken:
                assert refuses, self.broker.broken[name]
            else:
                self._find(name, twin)
        self.disk.refuses = refuses

    def _find(self, name, twin):
        """What is there must be something that may be there."""
        if name not in self.broker.queues:
            # a queue of which nothing was logged is none
            assert any(not may for may in twin.unsure)
            twin.found(None, {})
            return
        journal = self.broker.queues[name].journal
        with self._readable():
            numbers, delayed = self._numbers(journal), self._delayed(journal)
        held = frozenset((*numbers, *(-number for number in delayed)))
        missing = [may - held for may in twin.unsure if may is not None and held <= may]
        assert any(self.may_miss.issuperset(map(abs, numbers)) for numbers in missing)
        twin.found(numbers, delayed)

    @contextlib.contextmanager
    def _readable(self):
        """For the model itself, LevelDB can always be opened."""
        refuses, self.disk.refuses = self.disk.refuses, False
        yield
        self.disk.refuses = refuses

    def _delayed(self, journal):
        """The delayed items, and when they are due."""
        delayed = {}
        entries = sorted(journal._delayed(), key=lambda entry: entry[1].id)
        # the first ones may have been flushed
        for key, item in entries[len(entries) - journal.delayed_items :]:
            self._is_item(item, item.flags)
            delayed[item.flags] = int.from_bytes(key[1:9], "big")
            assert delayed[item.flags] == self.due[item.flags]
        assert journal.delayed_items == len(delayed)
        assert journal.delayed_bytes == sum(map(self._size, delayed))
        return delayed

    def _numbers(self, journal):
        items = journal.kept_items() + self._unread(journal)
        for item in items:
            self._is_item(item, item.flags)
            if item.flags in self.attempts:
                assert item.attempts == self.attempts[item.flags]
        numbers = [item.flags for item in items]
        assert numbers == sorted(numbers, key=self.order.get)
        assert (journal.state.items, journal.state.bytes) == (len(items), sum(item.size for item in items))
        return numbers

    @staticmethod
    def _unread(journal):
        items, _ = journal.scan(journal.reads, 1 << 20, 1 << 30)
        return items

    def _is_item(self, item, number):
        data, expires = self.items[number]
        assert item.flags == number
        assert item.expires_ms == expires
        assert item.data == (None if isinstance(data, list) else data)
        assert item.size == self._size(number)

    def _size(self, number):
        data = self.items[number][0]
        return len(data[0] if isinstance(data, list) else data)

    # The model

    def _queue(self, name):
        """The queue and its twin; no queue if there is no room for one."""
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
            or self.disk.refuses
            or self.broker.log.segment.refusal is not None
            or any(queue.journal.failing is not None for queue in queues)
        )

    def _tried(self, do, *args):
        """Whether that could be done; it must be, but for a disk in trouble."""
        try:
            do(*args)
        except JournalError:
            assert self._is_troubled
            return False
        return True

    def _expired(self, number):
        return 0 < self.items[number][1] <= self.now

    def _head(self, twin):
        """The number of what is fetched next."""
        due = sorted(twin.delayed, key=lambda number: (twin.delayed[number], self.due_place[number]))
        joining = [number for number in due if twin.delayed[number] <= self.now]
        return next((number for number in twin.waiting + joining if not self._expired(number)), None)

    def _reconcile(self, name):
        """Some of what had expired may be gone, and some of what was due may have joined the others."""
        twin, queue = self.twins[name], self.broker.queues.get(name)
        if queue is None or not (
            any(map(self._expired, twin.waiting)) or any(due <= self.now for due in twin.delayed.values())
        ):
            return
        journal = queue.journal
        with self._readable():
            waiting = {item.flags: item.id for item in (*queue.window, *self._unread(journal))}
            delayed = {item.flags for _, item in journal._delayed()}
        for number in [number for number in twin.waiting if number not in waiting]:
            assert self._expired(number)
            twin.waiting.remove(number)
        joined = [number for number in twin.delayed if number not in delayed]
        for number in sorted(joined, key=lambda number: waiting.get(number, 0)):
            assert twin.delayed.pop(number) <= self.now
            if number in waiting:
                self.order[number] = next(self.places)
                twin.waiting.append(number)
            else:
                assert self._expired(number)
        twin.changed()

    def _number(self, data, exptime=0):
        number = len(self.items) + 1
        self._set(number, data, exptime)
        return number

    def _set(self, number, data, exptime):
        expires = self.now + exptime * 1000 if exptime > 0 else -exptime
        self.items[number] = (data, expires)
        self.order[number] = next(self.places)
        self.attempts[number] = 0

    def _sync(self):
        """Somebody waits for the log."""
        client = Client()
        marks = {name: (twin, twin.history, len(twin.history) - 1) for name, twin in self.twins.items()}
        self.clients.append((client, marks))
        self.broker.log.sync(client, 0)
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
        if self._tried(queue.push, record(b"x" * size), number, exptime):
            twin.waiting.append(number)
            twin.changed()
            if queue.journal.crowded:
                client = Client()
                client.hold()
                queue.journal.crowding.append(client)
                self.clients.append((client, {}))
            if sync:
                self._sync()

    @rule(name=names, exptime=st.sampled_from([0, 0, 3]), delay_s=st.integers(1, 9), sync=st.booleans())
    def push_delayed(self, name, exptime, delay_s, sync):
        queue, twin = self._queue(name)
        if queue is None:
            return
        number = self._number(b"later", exptime)
        if self._tried(queue.push_delayed, record(b"later"), number, exptime, delay_s * 1000):
            self._is_delayed(twin, number, delay_s)
            if sync:
                self._sync()

    def _is_delayed(self, twin, number, delay_s):
        twin.delayed[number] = self.due[number] = self.now + delay_s * 1000
        self.due_place[number] = next(self.places)
        twin.changed()

    @rule(name=names, count=st.integers(2, 12), size=st.sampled_from([3, 200]))
    def push_many(self, name, count, size):
        for _ in range(count):
            self.push(name=name, size=size, exptime=0, sync=False)

    @rule(name=names, sizes=st.lists(st.integers(1, CHUNK_BYTES), min_size=1, max_size=5), run=st.booleans())
    def begin_upload(self, name, sizes, run):
        queue, twin = self._queue(name)
        if queue is None:
            return
        try:
            upload = queue.upload(sum(sizes))
        except JournalError:
            assert self._is_troubled
            return
        number = self._number([b""])
        chunks = [b"%-16d" % number] * len(sizes[1:]) + [b"y" * sizes[0]]
        for chunk in chunks:
            upload.write(chunk)
            if run:
                self.threads_run()
        self.uploads.append((upload, twin, twin.generation, number, b"".join(chunks)))

    @precondition(lambda self: self.uploads)
    @rule(data=st.data(), abandon=st.booleans(), delay_s=st.sampled_from([0, 0, 2]), sync=st.booleans())
    def end_upload(self, data, abandon, delay_s, sync):
        index = data.draw(st.integers(0, len(self.uploads) - 1))
        self._end_upload(index, abandon=abandon, delay_s=delay_s, sync=sync)

    def _end_upload(self, index, *, abandon, delay_s=0, sync):
        upload, twin, generation, number, content = self.uploads.pop(index)
        if abandon:
            upload.abandon()
            return

        def done(error):
            if error is not None:
                assert self._is_troubled or twin.generation != generation
                return
            assert twin.generation == generation
            self._set(number, [content], 0)
            if not sync:
                self.unsynced.add(number)
            if delay_s:
                self._is_delayed(twin, number, delay_s)
            else:
                twin.waiting.append(number)
                twin.changed()
            if sync:
                self._sync()

        upload.finish(number, 0, done, sync=sync, delay_ms=delay_s * 1000)

    @rule(name=names, sizes=st.lists(st.integers(1, CHUNK_BYTES), min_size=1, max_size=3), sync=st.booleans())
    def push_large(self, name, sizes, sync):
        before = len(self.uploads)
        self.begin_upload(name=name, sizes=sizes, run=False)
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
            item = getattr(Queue, how)(queue)
        except JournalError:
            assert self._is_troubled
            self._reconcile(name)
            return
        if number is None:
            assert item is None
            self._reconcile(name)
            return
        self._is_item(item, number)
        if how != "peek":
            if number in twin.waiting:
                twin.waiting.remove(number)
            else:
                del twin.delayed[number]
                self.order[number] = next(self.places)
        if how == "reserve":
            hold = twin.reserved[number] = Hold(queue, item, number)
            self.holds.append((hold, twin))
        if item.blob and (read or how == "peek"):
            self.readers.append((queue.open_blob(item), number))
        twin.changed()
        self._reconcile(name)

    @rule(name=names, count=st.integers(2, 6), seed=st.integers(0, 99))
    def work_off(self, name, count, seed):
        """Some items are reserved, and most of them closed, in any order, some before all is written."""
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

    @precondition(lambda self: self.holds)
    @rule(data=st.data(), how=st.sampled_from(["close", "abort"]))
    def end_hold(self, data, how):
        self._end_hold(data.draw(st.integers(0, len(self.holds) - 1)), how)

    def _end_hold(self, index, how):
        hold, twin = self.holds[index]
        is_held = twin.reserved.get(hold.number) is hold
        if how == "abort":
            if is_held and self._is_troubled:
                self.attempts.pop(hold.number, None)
            hold.queue.abort(hold.item)
        elif not self._tried(hold.queue.close, hold.item):
            return
        del self.holds[index]
        if is_held:
            del twin.reserved[hold.number]
            if how == "abort":
                twin.waiting.insert(0, hold.number)
                if hold.number in self.attempts:
                    self.attempts[hold.number] += 1
            twin.changed()

    @precondition(lambda self: self.readers)
    @rule()
    def read(self):
        """What was opened when it was fetched can be read, whatever has happened since."""
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
            twin.changed()

    @rule(name=names)
    def delete(self, name):
        twin = self.twins[name]
        if twin.exists and not twin.unsure and self._tried(self.broker.delete, name):
            twin.waiting.clear()
            twin.reserved.clear()
            twin.delayed.clear()
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
        full=st.booleans(),
        sync_fails=st.booleans(),
    )
    def trouble(self, failures, refuses, full, sync_fails):
        self.disk.failures[:] = failures
        self.disk.refuses, self.system.full, self.system.sync_fails = refuses, full, sync_fails

    @rule()
    def heal(self):
        self.trouble([], refuses=False, full=False, sync_fails=False)

    @rule(count=st.integers(1, 6))
    def tick(self, count):
        for _ in range(count):
            self.broker._retry_broken()
            for name, twin in self.twins.items():
                if twin.unsure and name not in self.broker.broken:
                    self._find(name, twin)
            self.broker.tick()
            self._told()
            for name in NAMES:
                self._reconcile(name)

    @precondition(lambda self: self.offload.tasks)
    @rule()
    def thread_runs(self):
        self.offload.run()
        self._told()

    @rule()
    def threads_run(self):
        while self.offload.tasks:
            self.thread_runs()

    @rule()
    def all_is_written(self):
        """Without trouble, the directories come to have just what is live, and the log nothing."""
        self.heal()
        for upload, *_ in self.uploads:
            upload.abandon()
        self.uploads.clear()
        for _ in range(200):
            self.tick(count=1)
            self.threads_run()
            broker = self.broker
            busy = broker._committer._active or broker.broken or broker._retired
            if not (busy or broker.log.segment.refusal):
                break
        else:
            raise AssertionError("it does not come to rest")
        assert not self.clients
        for name, twin in self.twins.items():
            if twin.exists:
                self._holds_nothing_else(self.broker.queues[name], twin)
        self.broker.log.roll()
        self.threads_run()
        assert len(list((self.data / ".log").glob("[0-9]*"))) == 1
        assert {path.name for path in self.data.iterdir() if path.name[0] != "."} <= {
            name.decode() for name in self.broker.queues
        }

    def _holds_nothing_else(self, queue, twin):
        journal = queue.journal
        files = set()
        live = set()
        delayed = self._delayed(journal)
        if not journal.path.exists():
            assert not twin.held
            return
        for key, stored in journal._opened().iterator():
            assert key[:1] in b"ikxcd"
            if key[:1] in b"id" and not is_state_key(key):
                item = _proto.decode_item(b"i" + key[-8:], stored)
                if key[:1] == b"i":
                    live.add(item.flags)
                if item.blob:
                    files.add(journal.blob_path(item.blob))
                    if item.flags in live or item.flags in delayed:  # others were flushed
                        self._reads_whole(journal, item)
        assert live == {number for number in twin.held if number > 0}
        assert set((journal.path / "blobs").glob("*")) == files

    def _reads_whole(self, journal, item):
        offload = Offload()
        reader = BlobReader(journal.blob_path(item.blob), item, offload)
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

    @rule(tasks=st.integers(0, 3), calls=st.integers(0, 25))
    def kill(self, tasks, calls):
        """Between two operations; perhaps again while it starts."""
        self._kill(tasks)
        self._restart({name: twin.may_hold(power_cut=False) for name, twin in self.twins.items()}, calls)

    def _kill(self, tasks):
        for work, _ in self.offload.tasks[:tasks]:
            try:
                work()
            except Exception:
                break
        self._die()

    @rule(name=names, what=st.sampled_from(["push", "flush", "delete", "tick"]), calls=st.integers(1, 6))
    def kill_amid(self, name, what, calls):
        """While it does something: that is done then, or it is not."""
        before = {name: twin.may_hold(power_cut=False) for name, twin in self.twins.items()}
        self.system.calls_left = calls
        try:
            if what == "push":
                self.push(name=name, size=300, exptime=0, sync=False)
            elif what == "tick":
                self.tick(count=5)
                self.threads_run()
            else:
                getattr(self, what)(name=name)
        except Killed:
            pass
        finally:
            self.system.calls_left = 0
        twin = self.twins[name]
        for other in NAMES:
            self._reconcile(other)
        after = {name: twin.may_hold(power_cut=False) for name, twin in self.twins.items()}
        self._die()
        may_hold = {name: before[name] + after[name] for name in self.twins}
        if what == "push" and not twin.unsure:
            held = before[name][-1] or frozenset()  # a new queue may be there with nothing in it yet
            may_hold[name] = [*may_hold[name], held, held | {len(self.items)}]
        elif what == "flush" and not twin.unsure:
            may_hold[name] = [*may_hold[name], frozenset(twin.reserved)]
        elif what == "delete":
            may_hold[name] = [*may_hold[name], None]
        self._restart(may_hold)

    @rule(seed=st.integers(0, 1 << 16), tasks=st.integers(0, 3), calls=st.integers(0, 25))
    def power_cut(self, seed, tasks, calls):
        self._kill(tasks)
        self.system.lose_power(self.data, random.Random(seed))
        self.attempts.clear()
        self.may_miss |= self.unsynced
        may_hold = {name: twin.may_hold(power_cut=True) for name, twin in self.twins.items()}
        for name, twin in self.twins.items():
            twin.history, twin.promised = list(may_hold[name]), 0
        self._restart(may_hold, calls)
        for twin in self.twins.values():
            if not twin.unsure:  # what it holds is on the disk
                del twin.history[:-1]

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
            self.patch.undo()
            shutil.rmtree(self.data, ignore_errors=True)


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(
    deadline=None,
    report_multiple_bugs=False,
    max_examples=int(os.environ.get("DARNER_EXAMPLES", "300")),
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
