"""Queues on real journals against plain lists, through failing writes, restarts and kills.

A number stands for an item, in the order of setting; it travels as the item's flags. The model knows of
each journal what is on disk, what is being written and what is staged on top of that.
"""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from darner import _proto, broker, commit, journal, queue
from darner.broker import Broker
from darner.errors import JournalError
from darner.journal import Journal

NAMES = (b"work", b"play")


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

    def run(self, index=0):
        work, done = self.tasks.pop(index)
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


class Twin:
    """What a journal should hold."""

    def __init__(self, journal):
        self.journal = journal
        self.on_disk = (frozenset(), False)  # its numbers, and whether it is deleted
        self.in_thread = None  # likewise
        self.waiting = []
        self.reserved = {}
        self.deleted = False
        self.out_of_service = False
        self.generation = 0
        self.replies = []  # that stand on what is staged
        self.replies_in_thread = []

    @property
    def staged(self):
        return (frozenset(self.waiting) | frozenset(self.reserved), self.deleted)

    def forget_staged(self):
        """What the disk has is all there is."""
        numbers, self.deleted = self.on_disk
        self.reserved = {n: hold for n, hold in self.reserved.items() if n in numbers}
        self.waiting = sorted(numbers - self.reserved.keys())
        self.generation += 1


class QueueMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.patch = patch = pytest.MonkeyPatch()
        patch.setattr(queue, "WINDOW_BYTES", 3 * queue.ITEM_BYTES)
        patch.setattr(queue, "READ_ITEMS", 2)
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
        self.items = {}  # number: data or chunks, when it expires
        self.twins = {}  # of queues, by name
        self.retired = {}  # of deleted queues whose journal is still there
        self._start()

    def _start(self):
        self.offload = Offload()
        self.broker = Broker(self.data, lambda: self.now, self.offload)
        self.broker.open()
        self.holds, self.uploads, self.pins = [], [], []

    # The model

    def _queue(self, name):
        queue = self.broker.queue(name)
        if name not in self.twins:
            twin = self.retired.pop(name, None) or Twin(queue.journal)
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
        while twin.waiting:
            expires = self.items[twin.waiting[0]][1]
            if not expires or expires > self.now:
                return twin.waiting[0]
            twin.waiting.pop(0)
        return None

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
        data, expires = self.items[number]
        assert item.flags == number
        assert item.expires_ms == expires
        if isinstance(data, bytes):
            assert item.data == data
        elif number in twin.on_disk[0]:
            assert [twin.journal.read_chunk(item.blob, i) for i in range(len(data))] == data

    # Operations

    names = st.sampled_from(NAMES)

    def _number(self, data, exptime):
        number = len(self.items) + 1
        self.items[number] = (data, 0 if not exptime else self.now + exptime * 1000 if exptime > 0 else 1)
        return number

    @rule(name=names, size=st.integers(0, 9), exptime=st.sampled_from([0, 0, 0, 5, -1]), sync=st.booleans())
    def push(self, name, size, exptime, sync):
        queue, twin = self._queue(name)
        number = self._number(b"x" * size, exptime)
        if twin.out_of_service:
            with pytest.raises(JournalError):
                queue.push(b"x" * size, number, exptime, sync=sync)
            return
        queue.push(b"x" * size, number, exptime, sync=sync)
        twin.waiting.append(number)
        self._promise(twin)

    @rule(name=names, count=st.integers(2, 12))
    def push_many(self, name, count):
        for _ in range(count):
            self.push(name=name, size=3, exptime=0, sync=False)

    @rule(name=names, sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5), commit=st.booleans())
    def begin_upload(self, name, sizes, commit):
        queue, twin = self._queue(name)
        if twin.out_of_service:
            with pytest.raises(JournalError):
                queue.upload()
            return
        upload = queue.upload()
        chunks = [bytes([i]) * size for i, size in enumerate(sizes)]
        for chunk in chunks:
            upload.write(chunk)
            if commit:
                self.commit()
        self.uploads.append((upload, twin, twin.generation, chunks))

    @precondition(lambda self: self.uploads)
    @rule(data=st.data(), abandon=st.booleans(), exptime=st.sampled_from([0, 0, 5]))
    def end_upload(self, data, abandon, exptime):
        index = data.draw(st.integers(0, len(self.uploads) - 1))
        upload, twin, generation, chunks = self.uploads.pop(index)
        if abandon:
            upload.abandon()
            return
        number = self._number(chunks, exptime)
        if twin.out_of_service or twin.generation != generation:
            with pytest.raises(JournalError):
                upload.finish(number, exptime, sync=False)
            upload.abandon()
            return
        upload.finish(number, exptime, sync=False)
        twin.waiting.append(number)
        self._promise(twin)

    @rule(name=names, how=st.sampled_from(["pop", "pop", "reserve", "reserve", "peek"]), pin=st.booleans())
    def fetch(self, name, how, pin):
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
        if item.blob and pin:
            twin.journal.pin(item.blob)
            self.pins.append((twin, item, number, number in twin.on_disk[0]))
        self._promise(twin)

    @rule(name=names)
    def lose_a_reserved_item(self, name):
        """Its id will be another's, and its holder is still there."""
        _, twin = self._queue(name)
        if not twin.out_of_service and not twin.in_thread and not twin.waiting:
            self.push(name=name, size=3, exptime=0, sync=False)
            self.fetch(name=name, how="reserve", pin=False)
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

    @precondition(lambda self: self.pins)
    @rule()
    def read_pinned(self):
        twin, item, number, was_on_disk = self.pins.pop(0)
        if was_on_disk and not twin.out_of_service:
            chunks = self.items[number][0]
            assert [twin.journal.read_chunk(item.blob, i) for i in range(len(chunks))] == chunks
        twin.journal.unpin(item.blob)

    @rule(name=names)
    def flush(self, name):
        queue, twin = self._queue(name)
        if twin.out_of_service:
            with pytest.raises(JournalError):
                queue.flush()
            return
        queue.flush()
        twin.waiting.clear()
        self._promise(twin)

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
        if twin is None or twin.deleted and mode == "for long":
            return
        if twin.in_thread is None:
            self.failing[twin.journal] = mode
        self.commit()
        self.failing = {}  # there was nothing to write, or a thread writes it later

    @precondition(lambda self: self.offload.tasks)
    @rule(data=st.data(), mode=st.sampled_from([None, None, "before", "after", "for long"]))
    def thread_runs(self, data, mode):
        index = data.draw(st.integers(0, len(self.offload.tasks) - 1))
        if mode and not any(twin.deleted for twin in self.all_twins):
            self.failing = {twin.journal: mode for twin in self.all_twins if twin.in_thread}
        self._thread_runs(index)

    def _thread_runs(self, index=0):
        work, done = self.offload.tasks[index]
        written = {twin: twin.journal.writing for twin in self.all_twins if twin.in_thread}
        self.offload.tasks[index] = (lambda: self._once(work), done)
        self.offload.run(index)
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
    def tidy(self):
        out = [twin for twin in self.twins.values() if twin.out_of_service]
        self.failed.clear()
        self.broker.tidy()
        for twin in out:
            twin.out_of_service = False
            twin.forget_staged()
        self._committed()
        self.retired = {name: twin for name, twin in self.retired.items() if name in self.broker._retired}

    # The end of the process

    @rule()
    def restart(self):
        self.commit()
        while any(twin.in_thread for twin in self.all_twins):
            self._thread_runs()
        self.broker.close()
        self._restarted()

    @rule(data=st.data())
    def kill(self, data):
        for work, _ in self.offload.tasks:
            written = [twin for twin in self.all_twins if twin.in_thread]
            if data.draw(st.booleans()):
                seen = {twin: twin.journal._db.get(b"s") for twin in written}
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
        for name, twin in twins.items():
            numbers, deleted = twin.on_disk
            if not deleted:
                twin = self.twins[name] = Twin(self.broker.queues[name].journal)
                twin.waiting = sorted(numbers)
                twin.on_disk = (numbers, False)
        assert set(self.broker.queues) == set(self.twins)
        while any(twin.journal.untidy for twin in self.twins.values()):
            self.broker.tidy()
        for twin in self.twins.values():
            self._holds_nothing_else(twin)

    def _holds_nothing_else(self, twin):
        blobs = 0
        chunks = 0
        for key, record in twin.journal._db.iterator():
            assert key[:1] in b"sick"
            if key[:1] == b"i":
                item = _proto.decode_item(key, record)
                assert item.flags in twin.on_disk[0]
                blobs += len(self.items[item.flags][0]) if item.blob else 0
            chunks += key[:1] == b"c"
        assert chunks == blobs

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
        return len(data) if isinstance(data, bytes) else sum(map(len, data))

    def teardown(self):
        try:
            self.restart()
            for name in list(self.twins):
                while self._head(self.twins[name]):
                    self.fetch(name=name, how="pop", pin=False)
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
