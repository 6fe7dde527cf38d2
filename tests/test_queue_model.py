"""Queues on real journals against plain lists, through failing writes, restarts and kills.

A number stands for an item; it travels as the item's flags. The model knows of
each journal what is on disk, what is being written and what is staged on top of that.
"""

import contextlib
import itertools
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from darner import _proto, broker, commit, journal, queue
from darner.blob import BlobReader
from darner.broker import Broker
from darner.config import QueueSettings
from darner.errors import ItemTooLargeError, JournalError, QueueFullError
from darner.journal import Journal

NAMES = (b"work", b"play")
CHUNK_BYTES = 16
SETTINGS = (
    QueueSettings(),
    QueueSettings(max_items=3),
    QueueSettings(max_bytes=20, max_item_size=30, discard_old_when_full=True),
    QueueSettings(max_items=2, max_age_ms=4000, discard_old_when_full=True),
)


class Silence:
    def debug(self, *_, **__):
        pass

    warning = error = debug


class Offload:
    """A thread that runs when told to."""

    def __init__(self):
        self.tasks = []

    def __call__(self, work, done):
        self.tasks.append((work, done))

    def run(self):
        work, done = self.tasks.pop(0)
        try:
            work()
        except Exception as error:
            done(error)
        else:
            done(None)


class Reply:
    """A client that waits for one reply."""

    def __init__(self):
        self.held = 0
        self.failed = 0

    def hold(self):
        self.held += 1

    def release(self):
        self.held -= 1

    def fail(self, slot, error):
        self.failed += 1


class Hold:
    """An item that somebody has reserved."""

    def __init__(self, queue, item, number):
        self.queue, self.item, self.number = queue, item, number


class First:
    """Draws the first of each."""

    @staticmethod
    def draw(strategy):
        return 0


class Twin:
    """What a journal should hold."""

    def __init__(self, name, journal, order):
        self.name = name
        self.journal = journal
        self.order = order
        # its numbers, those of delayed items negative, and whether it is deleted
        self.on_disk = (frozenset(), False)
        self.in_thread = None  # likewise
        self.waiting = []
        self.delayed = []
        self.reserved = {}
        self.deleted = False
        self.out_of_service = False
        self.generation = 0
        self.replies = []  # that stand on what is staged
        self.replies_in_thread = []

    @property
    def staged(self):
        delayed = {-number for number in self.delayed}
        return (frozenset(self.waiting) | frozenset(self.reserved) | delayed, self.deleted)

    def forget_staged(self):
        """What the disk has is all there is."""
        numbers, self.deleted = self.on_disk
        self.reserved = {n: hold for n, hold in self.reserved.items() if n in numbers}
        self.live(numbers - self.reserved.keys())
        self.generation += 1

    def live(self, numbers):
        self.waiting = sorted((n for n in numbers if n > 0), key=self.order.get)
        self.delayed = [-n for n in numbers if n < 0]


class QueueMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.patch = patch = pytest.MonkeyPatch()
        patch.setattr(queue, "WINDOW_BYTES", 3 * queue.ITEM_BYTES)
        patch.setattr(queue, "READ_ITEMS", 2)
        patch.setattr(queue, "CHUNK_BYTES", CHUNK_BYTES)
        patch.setattr(journal, "MAX_GONE", 2)
        patch.setattr(journal, "TRIM_RECORDS", 3)
        patch.setattr(journal, "COMPACT_RECORDS", 40)
        patch.setattr(commit, "INLINE_BYTES", 40)
        patch.setattr(broker, "log", Silence())
        really_write, really_open = Journal.write, Journal._open

        def write(journal, batch):
            mode = self.failing.pop(journal, None)
            if mode != "before" and mode != "for long":
                really_write(journal, batch)
            if mode:
                self.failed[journal] = mode
                raise JournalError("no space left")

        def open_(journal, *args):
            if self.failed.get(journal) == "for long":
                raise JournalError("still no space left")
            really_open(journal, *args)

        patch.setattr(Journal, "write", write)
        patch.setattr(Journal, "_open", open_)
        self.failing, self.failed = {}, {}
        self.data = Path(tempfile.mkdtemp(prefix="darner-model"))
        self.now = 1_000_000
        # number: data, or a list of it if in chunks, when it expires by itself, and when it was set
        self.items = {}
        self.order = {}  # number: its place among all, in the order of setting
        self.due = {}  # number of an item that was delayed: when it is due, and its place among those
        self.places = itertools.count()
        self.twins = {}  # of queues, by name
        self.retired = {}  # of deleted queues whose journal is still there
        self.settings = dict.fromkeys(NAMES, SETTINGS[0])
        self._start()

    def _start(self):
        self.offload = Offload()
        self.broker = Broker(self.data, lambda: self.now, self.offload, self.settings.__getitem__)
        self.broker.open()
        self.holds, self.uploads, self.readers = [], [], []

    # The model

    def _queue(self, name):
        queue = self.broker.queue(name)
        if name not in self.twins:
            twin = self.retired.pop(name, None) or Twin(name, queue.journal, self.order)
            twin.deleted = False
            self.twins[name] = twin
        assert queue.journal is self.twins[name].journal
        return queue, self.twins[name]

    def _promise(self, twin):
        """Somebody has done something, and waits to hear that it is so."""
        if not twin.journal.settled:
            reply = Reply()
            twin.journal.acknowledge(reply, 0)
            twin.replies.append(reply)

    def _head(self, twin):
        self._drop_expired_head(twin)
        while not twin.waiting and self._join(twin):
            self._drop_expired_head(twin)
        return twin.waiting[0] if twin.waiting else None

    def _drop_expired_head(self, twin):
        while twin.waiting and self._has_expired(twin.waiting[0], twin):
            twin.waiting.pop(0)

    def _join(self, twin):
        """What is delayed joins if it is due, and on disk; returns whether anything did."""
        due = [n for n in twin.delayed if self.due[n][0] <= self.now and -n in twin.on_disk[0]]
        for number in sorted(due, key=self.due.get):
            twin.delayed.remove(number)
            twin.waiting.append(number)
            self.order[number] = next(self.places)
            data, expires, _ = self.items[number]
            self.items[number] = (data, expires, self.now)
        return bool(due)

    def _has_expired(self, number, twin):
        _, expires, since = self.items[number]
        max_age = self.settings[twin.name].max_age_ms
        return 0 < expires <= self.now or (max_age is not None and self.now - since >= max_age)

    def _refusal(self, twin, size, *, discard=True):
        """What a set of an item of so many bytes raises, or None if there is room, now."""
        settings = self.settings[twin.name]
        if settings.max_item_size is not None and size > settings.max_item_size:
            return ItemTooLargeError
        if self._is_full(twin, size):
            if self._is_over(twin, twin.delayed, size):
                return QueueFullError
            self._drop_expired_head(twin)
            if not settings.discard_old_when_full and self._is_full(twin, size):
                return QueueFullError
            while discard and self._is_full(twin, size):
                twin.waiting.pop(0)
        return None

    def _is_full(self, twin, size):
        return self._is_over(twin, twin.waiting + twin.delayed, size)

    def _is_over(self, twin, numbers, size):
        settings = self.settings[twin.name]
        held = sum(self._size(number) for number in numbers)
        return (settings.max_items is not None and len(numbers) >= settings.max_items) or (
            settings.max_bytes is not None and held + size > settings.max_bytes
        )

    def _drop_expired(self, twin):
        """Returns how many."""
        live = [number for number in twin.waiting if not self._has_expired(number, twin)]
        count = len(twin.waiting) - len(live)
        twin.waiting = live
        return count

    @property
    def all_twins(self):
        return [*self.twins.values(), *self.retired.values()]

    def _committed(self, twins=None):
        """A commit of these, or all, has taken place: bring the twins to where their journals are."""
        for twin in self.all_twins if twins is None else twins:
            if twin.journal in self.failed:
                self._lost(twin)
            elif twin.journal.writing is None:
                self._all_written(twin)
            elif twin.in_thread is None:
                twin.in_thread = twin.staged
                twin.replies_in_thread, twin.replies = twin.replies, []
                assert all(reply.held == 1 for reply in twin.replies_in_thread)

    def _all_written(self, twin):
        if not twin.out_of_service:
            twin.on_disk = twin.staged
        self._settled(twin.replies, failed=False)

    def _lost(self, twin):
        mode = self.failed[twin.journal]
        twin.out_of_service = mode == "for long"
        if mode == "after":  # it was written after all, but for what was staged behind it
            if twin.in_thread is None:
                twin.on_disk = twin.staged
                self._settled(twin.replies, failed=False)
            else:
                twin.on_disk = twin.in_thread
        self._settled(twin.replies_in_thread, failed=mode != "after")
        self._settled(twin.replies, failed=True)
        twin.in_thread = None
        if not twin.out_of_service:
            del self.failed[twin.journal]
            twin.forget_staged()

    def _settled(self, replies, *, failed):
        assert all((reply.held, reply.failed) == (0, failed) for reply in replies)
        replies.clear()

    def _is_item(self, item, number, twin):
        data, expires, since = self.items[number]
        assert item.flags == number
        assert item.expires_ms == expires
        assert item.enqueued_ms == since
        assert item.data == (None if isinstance(data, list) else data)
        assert item.size == len(data[0] if isinstance(data, list) else data)

    # Operations

    names = st.sampled_from(NAMES)

    def _delay(self, number, twin, delay_ms):
        self.due[number] = (self.now + delay_ms, next(self.places))
        twin.delayed.append(number)

    def _number(self, data, exptime=0):
        number = len(self.items) + 1
        self._set(number, data, exptime)
        return number

    def _set(self, number, data, exptime):
        expires = self.now + exptime * 1000 if exptime > 0 else -exptime
        self.items[number] = (data, expires, self.now)
        self.order[number] = next(self.places)

    @rule(name=names, size=st.integers(0, 9), exptime=st.sampled_from([0, 0, 0, 5, -1]), sync=st.booleans())
    def push(self, name, size, exptime, sync):
        queue, twin = self._queue(name)
        number = self._number(b"x" * size, exptime)
        if twin.out_of_service:
            with pytest.raises(JournalError):
                queue.push(b"x" * size, number, exptime, sync=sync)
            return
        refusal = self._refusal(twin, size)
        if refusal is not None:
            with pytest.raises(refusal):
                queue.push(b"x" * size, number, exptime, sync=sync)
            return
        queue.push(b"x" * size, number, exptime, sync=sync)
        twin.waiting.append(number)
        self._promise(twin)

    @rule(name=names, delay_ms=st.integers(1, 9).map((1000).__mul__), exptime=st.sampled_from([0, 0, 5]))
    def push_delayed(self, name, delay_ms, exptime):
        queue, twin = self._queue(name)
        number = self._number(b"delayed", exptime)
        refusal = JournalError if twin.out_of_service else self._refusal(twin, 7)
        if refusal is not None:
            with pytest.raises(refusal):
                queue.push_delayed(b"delayed", number, exptime, delay_ms, sync=False)
            return
        queue.push_delayed(b"delayed", number, exptime, delay_ms, sync=False)
        self._delay(number, twin, delay_ms)
        self._promise(twin)

    @rule(name=names, count=st.integers(2, 12), living=st.sampled_from([1, 1, 2, 3]))
    def push_many(self, name, count, living):
        for number in range(count):
            self.push(name=name, size=3, exptime=5 if number % living else 0, sync=False)

    @rule(
        name=names, sizes=st.lists(st.integers(1, CHUNK_BYTES), min_size=1, max_size=5), commit=st.booleans()
    )
    def begin_upload(self, name, sizes, commit):
        queue, twin = self._queue(name)
        if twin.out_of_service:
            with pytest.raises(JournalError):
                queue.upload(sum(sizes))
            return
        number = self._number([b""])
        chunks = [b"%-16d" % number] * len(sizes[1:]) + [b"y" * sizes[0]]
        size = sum(map(len, chunks))
        refusal = self._refusal(twin, size, discard=False)
        if refusal is not None:
            with pytest.raises(refusal):
                queue.upload(size)
            return
        upload = queue.upload(size)
        for chunk in chunks:
            upload.write(chunk)
            if commit:
                self.commit()
        self.uploads.append((upload, twin, twin.generation, number, b"".join(chunks)))

    @precondition(lambda self: self.uploads)
    @rule(
        data=st.data(),
        abandon=st.booleans(),
        exptime=st.sampled_from([0, 0, 5]),
        sync=st.booleans(),
        delay_ms=st.sampled_from([0, 0, 3000]),
    )
    def end_upload(self, data, abandon, exptime, sync, delay_ms=0):
        index = data.draw(st.integers(0, len(self.uploads) - 1))
        upload, twin, generation, number, content = self.uploads.pop(index)
        if abandon:
            upload.abandon()
            return

        def done(error):
            if not isinstance(error, JournalError):
                refusal = self._refusal(twin, len(content))
                assert error is None if refusal is None else isinstance(error, refusal)
                if refusal is not None:
                    return
            if error is not None:
                assert twin.out_of_service or twin.generation != generation
                return
            assert not twin.out_of_service
            assert twin.generation == generation
            self._set(number, [content], exptime)
            if delay_ms:
                self._delay(number, twin, delay_ms)
            else:
                twin.waiting.append(number)
            self._promise(twin)

        upload.finish(number, exptime, done, sync=sync, delay_ms=delay_ms)

    @rule(name=names, sizes=st.lists(st.integers(1, CHUNK_BYTES), min_size=1, max_size=3))
    def push_large(self, name, sizes):
        _, twin = self._queue(name)
        if not twin.out_of_service:
            uploads, self.uploads = self.uploads, []
            self.begin_upload(name=name, sizes=sizes, commit=False)
            if self.uploads:
                self.end_upload(data=First(), abandon=False, exptime=0, sync=False)
                self.threads_run()
            self.uploads = uploads

    @rule(name=names, how=st.sampled_from(["pop", "pop", "reserve", "reserve", "peek"]), read=st.booleans())
    def fetch(self, name, how, read):
        queue, twin = self._queue(name)
        fetch = getattr(queue, how)
        if twin.out_of_service:
            with pytest.raises(JournalError):
                fetch()
            return
        item, number = fetch(), self._head(twin)
        if number is None:
            assert item is None
            return
        self._is_item(item, number, twin)
        if how != "peek":
            twin.waiting.pop(0)
        if how == "reserve":
            hold = twin.reserved[number] = Hold(queue, item, number)
            self.holds.append((hold, twin))
        if item.blob and (read or how == "peek"):
            self.readers.append((queue.open_blob(item), number))
        self._promise(twin)

    @rule(name=names)
    def lose_a_reserved_item(self, name):
        """Its id will be another's, and its holder is still there."""
        _, twin = self._queue(name)
        if not twin.out_of_service and not twin.in_thread and not twin.waiting:
            self.push(name=name, size=3, exptime=0, sync=False)
            self.fetch(name=name, how="reserve", read=False)
            self.commit_and_fail(name=name, mode="before")

    @precondition(lambda self: self.holds)
    @rule(data=st.data(), how=st.sampled_from(["close", "abort"]))
    def end_hold(self, data, how):
        index = data.draw(st.integers(0, len(self.holds) - 1))
        hold, twin = self.holds[index]
        is_held = twin.reserved.get(hold.number) is hold
        if how == "close" and is_held and twin.out_of_service:
            with pytest.raises(JournalError):
                hold.queue.close(hold.item)
            return
        getattr(hold.queue, how)(hold.item)
        del self.holds[index]
        if is_held:
            del twin.reserved[hold.number]
            if how == "abort" and not twin.out_of_service:
                twin.waiting.insert(0, hold.number)
            self._promise(twin)

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
        if twin.out_of_service:
            with pytest.raises(JournalError):
                queue.flush()
            return
        queue.flush()
        twin.waiting.clear()
        twin.delayed.clear()
        self._promise(twin)

    @rule(name=names)
    def flush_expired(self, name):
        queue, twin = self._queue(name)
        if twin.out_of_service:
            with pytest.raises(JournalError):
                next(queue.flush_expired())
            return
        assert sum(queue.flush_expired()) == self._drop_expired(twin)
        self._promise(twin)

    @rule(name=names, settings=st.sampled_from(SETTINGS))
    def configure(self, name, settings):
        self.settings[name] = settings
        if name in self.broker.queues:
            self.broker.queues[name].configure(settings)

    @precondition(lambda self: self.twins)
    @rule(data=st.data())
    def delete(self, data):
        name = data.draw(st.sampled_from(sorted(self.twins)))
        twin = self.twins[name]
        if twin.out_of_service:
            with pytest.raises(JournalError):
                self.broker.delete(name)
            return
        assert self.broker.delete(name) is twin.journal
        del self.twins[name]
        self.retired[name] = twin
        twin.waiting.clear()
        twin.delayed.clear()
        twin.reserved.clear()
        twin.deleted = True
        twin.generation += 1
        self._promise(twin)

    @rule(seconds=st.integers(1, 6))
    def time_passes(self, seconds):
        self.now += seconds * 1000

    # The disk

    @rule()
    def commit(self):
        self.broker.committer.commit()
        self._committed()

    @rule(name=names, mode=st.sampled_from(["before", "after", "for long"]))
    def commit_and_fail(self, name, mode):
        twin = self.twins.get(name) or self.retired.get(name)
        if twin is None or (twin.deleted and mode == "for long"):
            return
        if twin.in_thread is None:
            self.failing[twin.journal] = mode
        self.commit()
        self.failing = {}  # there was nothing to write, or a thread writes it later

    @precondition(lambda self: self.offload.tasks)
    @rule(mode=st.sampled_from([None, None, "before", "after", "for long"]))
    def thread_runs(self, mode):
        if mode and not any(twin.deleted for twin in self.all_twins):
            self.failing = {twin.journal: mode for twin in self.all_twins if twin.in_thread}
        self._thread_runs()

    def _thread_runs(self):
        work, done = self.offload.tasks[0]
        written = {twin: twin.journal.writing for twin in self.all_twins if twin.in_thread}
        self.offload.tasks[0] = (lambda: self._once(work), done)
        self.offload.run()
        settled = [twin for twin in written if twin.journal.writing is not written[twin]]
        for twin in settled:
            if twin.journal not in self.failed:
                twin.on_disk, twin.in_thread = twin.in_thread, None
                self._settled(twin.replies_in_thread, failed=False)
        self._committed(settled)

    def _once(self, work):
        try:
            work()
        finally:
            self.failing = {}

    @rule()
    def threads_run(self):
        while self.offload.tasks:
            self._thread_runs()

    @rule()
    def tidy(self):
        out = [twin for twin in self.twins.values() if twin.out_of_service]
        self.failed.clear()
        self.broker.tidy()
        for twin in out:
            twin.out_of_service = False
            twin.forget_staged()
        for twin in self.twins.values():
            self._join(twin)
            self._drop_expired(twin)
        self._committed()
        self.retired = {name: twin for name, twin in self.retired.items() if name in self.broker._retired}

    # The end of the process

    @rule()
    def restart(self):
        for upload, *_ in self.uploads:
            upload.abandon()
        self.commit()
        self.threads_run()
        self.commit()
        self.threads_run()
        self.broker.close()
        self._committed()
        self._restarted()

    @rule(data=st.data())
    def kill(self, data):
        for work, _ in self.offload.tasks[: data.draw(st.integers(0, 5))]:
            written = [twin for twin in self.all_twins if twin.in_thread]
            seen = {twin: twin.journal._db.get(b"s") for twin in written}
            with contextlib.suppress(OSError):  # its queue was deleted meanwhile
                work()
            for twin in written:
                if twin.journal._db.get(b"s") != seen[twin]:
                    twin.on_disk = twin.in_thread
        for twin in self.all_twins:
            twin.journal._db.close()
        self.broker._lock.close()
        self._restarted()

    def _restarted(self):
        twins = self.twins | self.retired
        self.twins, self.retired, self.failed = {}, {}, {}
        self._start()
        for name, last in twins.items():
            numbers, deleted = last.on_disk
            if not deleted:
                twin = self.twins[name] = Twin(name, self.broker.queues[name].journal, self.order)
                twin.live(numbers)
                twin.on_disk = (numbers, False)
        assert set(self.broker.queues) == set(self.twins)
        while any(twin.journal.untidy or twin.journal.doomed for twin in self.twins.values()):
            self.tidy()
            self.threads_run()
        self.commit()
        for twin in self.twins.values():
            self._holds_nothing_else(twin)

    def _holds_nothing_else(self, twin):
        files = set()
        for key, record in twin.journal._db.iterator():
            assert key[:1] in b"sikxdc"
            if key[:1] in b"id":
                item = _proto.decode_item(b"i" + key[-8:], record)
                is_flushed = key[:1] == b"d" and item.id < twin.journal._live_from
                assert is_flushed or (item.flags if key[:1] == b"i" else -item.flags) in twin.on_disk[0]
                if item.blob:
                    files.add(twin.journal.blob_path(item.blob))
                    content = self.items[item.flags][0][0]
                    offload = Offload()
                    reader = BlobReader(twin.journal.blob_path(item.blob), item, offload)
                    assert reader.read(lambda: None) is None
                    offload.run()
                    assert reader.read(lambda: None) == content
                    reader.close()
        assert set((twin.journal.path / "blobs").glob("*")) == files

    @invariant()
    def counts_are_exact(self):
        for name, twin in self.twins.items():
            if twin.out_of_service:
                continue
            queue = self.broker.queues[name]
            state = twin.journal.state
            assert queue.items == len(twin.waiting)
            assert queue.waiting_bytes == sum(self._size(n) for n in twin.waiting)
            assert len(queue.reserved) == len(twin.reserved)
            assert queue.delayed_items == len(twin.delayed)
            assert twin.journal.delayed_bytes == sum(self._size(n) for n in twin.delayed)
            if twin.journal.settled:
                live = {}
                for key, record in twin.journal._db.iterator(start=b"i", stop=b"j"):
                    item = _proto.decode_item(key, record)
                    if item.id >= state.floor or item.id in twin.journal.kept:
                        live[item.flags] = item.size
                assert live == {n: self._size(n) for n in (*twin.waiting, *twin.reserved)}
                assert (state.items, state.bytes) == (len(live), sum(live.values()))

    def _size(self, number):
        data = self.items[number][0]
        return len(data[0] if isinstance(data, list) else data)

    def teardown(self):
        try:
            self.restart()
            for name in list(self.twins):
                while self._head(self.twins[name]):
                    self.fetch(name=name, how="pop", read=False)
                assert self.broker.queues[name].pop() is None
            self.broker.close()
        finally:
            self.patch.undo()
            shutil.rmtree(self.data, ignore_errors=True)


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(
    deadline=None,
    report_multiple_bugs=False,
    max_examples=150,
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
