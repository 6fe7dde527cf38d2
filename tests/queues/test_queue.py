"""One FIFO: order, reserved items, waiters, expiry, limits of memory, uploads. The clock is a number."""

import pytest
from doubles import begin_upload, record
from lone_queue import NOW

from darner._records import CHUNK_BYTES, ITEM_BYTES, item_key
from darner.environment.timeline import Timeline
from darner.errors import JournalError, NotReadyError
from darner.queues import item_window
from darner.queues.queue import Queue
from darner.queues.waiters import Waiter


class TestOrder:
    def test_is_first_in_first_out(self, it):
        it.push(b"a", b"b", b"c")
        assert it.waiting() == [b"a", b"b", b"c"]
        assert it.queue.pop() is None

    def test_is_kept_when_most_of_the_queue_is_on_disk(self, small, it):
        datas = [b"%d" % n for n in range(50)]
        it.push(*datas)
        assert len(it.queue.window) < 5
        assert it.waiting() == datas

    @pytest.mark.parametrize("commits", [False, True])
    def test_is_kept_when_setting_and_fetching_alternate(self, small, it, commits):
        got = []
        for n in range(60):
            it.push(b"%d" % n)
            if n % 3 == 2:
                got += [it.queue.pop().data, it.queue.pop().data]
            if commits and n % 7 == 0:
                it.commit()
        assert got + it.waiting() == [b"%d" % n for n in range(60)]

    def test_is_kept_over_a_restart(self, small, it):
        it.push(*[b"%d" % n for n in range(20)])
        assert [it.queue.pop().data for _ in range(7)] == [b"%d" % n for n in range(7)]
        it.restart()
        assert it.queue.items == 13
        assert it.waiting() == [b"%d" % n for n in range(7, 20)]

    def test_holds_no_more_than_the_window_in_memory(self, it, monkeypatch):
        monkeypatch.setattr(item_window, "WINDOW_BYTES", 10_000)
        monkeypatch.setattr(item_window, "READ_BYTES", 5_000)
        it.restart()
        it.push(*[b"x" * 1000] * 100)
        assert sum(len(item.data) for item in it.queue.window) <= 10_000
        it.commit()
        while it.queue.pop():
            assert sum(len(item.data) for item in it.queue.window) <= 10_000
            assert it.queue.window.bytes == sum(1000 + ITEM_BYTES for _ in it.queue.window)

    def test_items_come_as_they_were_set(self, it):
        it.queue.push(record(b"a"), 0xFFFFFFFF, 0)
        for _ in range(2):
            item = it.queue.peek()
            assert (item.flags, item.data, item.enqueued_ms, item.expires_ms) == (0xFFFFFFFF, b"a", NOW, 0)
            it.restart()


class TestReserved:
    def test_is_out_of_sight_and_not_counted_as_waiting(self, it):
        it.push(b"a", b"bb")
        assert it.queue.reserve().data == b"a"
        assert it.queue.peek().data == b"bb"
        assert (it.queue.items, it.queue.waiting_bytes) == (1, 2)

    def test_is_gone_once_closed(self, it):
        it.push(b"a", b"b")
        it.queue.close(it.queue.reserve())
        it.restart()
        assert it.waiting() == [b"b"]

    def test_is_the_next_one_once_aborted(self, it):
        it.push(b"a", b"b")
        it.queue.abort(it.queue.reserve())
        assert (it.queue.items, it.queue.waiting_bytes) == (2, 2)
        assert it.waiting() == [b"a", b"b"]

    def test_is_waiting_again_after_a_restart_where_it_was(self, small, it):
        it.push(*[b"%d" % n for n in range(10)])
        it.queue.reserve()
        assert it.queue.pop().data == b"1"
        it.queue.reserve()
        for _ in range(4):
            it.queue.pop()
        it.restart()
        assert it.queue.items == 5
        assert it.waiting() == [b"0", b"2", b"7", b"8", b"9"]

    def test_comes_back_in_the_original_order_if_the_last_is_aborted_first(self, it):
        it.push(b"a", b"b", b"c", b"d")
        held = [it.queue.reserve() for _ in range(3)]
        for item in reversed(held):
            it.queue.abort(item)
        assert it.waiting() == [b"a", b"b", b"c", b"d"]

    def test_comes_back_to_the_head_whatever_went_before(self, small, it):
        it.push(*[b"%d" % n for n in range(12)])
        first, second = it.queue.reserve(), it.queue.reserve()
        assert it.queue.pop().data == b"2"
        it.queue.abort(first)
        it.queue.abort(second)
        assert it.waiting() == [b"1", b"0"] + [b"%d" % n for n in range(3, 12)]

    def test_counts_how_often_it_came_back(self, it):
        it.push(b"a")
        it.commit()
        for _ in range(3):
            it.queue.abort(it.queue.reserve())
        assert it.restart().reserve().attempts == 3
        assert it.queue.counts.canceled_transactions == 0  # of this start

    def test_counts_that_up_to_its_limit(self, it):
        it.push(b"a")
        item = it.queue.reserve()
        item.attempts = 0xFFFF
        it.queue.abort(item)
        assert it.restart().peek().attempts == 0xFFFF

    def test_is_closed_or_aborted_only_once(self, it):
        it.push(b"a", b"b")
        item = it.queue.reserve()
        it.queue.abort(item)
        it.queue.abort(item)
        it.queue.close(item)
        assert it.waiting() == [b"a", b"b"]


class TestExpiry:
    @pytest.mark.parametrize(
        ("exptime", "dies_at"),
        [
            (1, NOW + 1000),
            (60 * 60 * 24 * 30, NOW + 60 * 60 * 24 * 30 * 1000),
            (60 * 60 * 24 * 30 + 1, NOW),  # a date long ago
            (NOW // 1000 + 60, NOW + 60_000),  # a date to come
            (-1, NOW),
            (-(10**17), NOW),
        ],
    )
    def test_is_as_in_memcache(self, it, exptime, dies_at):
        it.push(b"a", exptime=exptime)
        it.restart()
        if dies_at > NOW:
            it.now = dies_at - 1
            assert it.queue.peek().data == b"a"
        it.now = dies_at
        assert it.queue.peek() is None
        assert it.queue.counts.expired_items == 1
        assert it.restart().items == 0

    @pytest.mark.parametrize("exptime", [0, 10**15, 10**17])
    def test_may_be_never_or_as_good_as_never(self, it, exptime):
        it.push(b"a", exptime=exptime)
        it.now += 10**12
        assert it.restart().pop().data == b"a"

    def test_uncovers_what_is_behind(self, it):
        it.push(b"a", b"b", exptime=1)
        it.push(b"c")
        it.now += 1000
        assert it.queue.pop().data == b"c"
        assert it.queue.counts.expired_items == 2

    def test_does_not_touch_a_reserved_item_until_it_is_back(self, it):
        it.push(b"a", exptime=1)
        item = it.queue.reserve()
        it.now += 5000
        it.queue.abort(item)
        assert it.queue.pop() is None


class TestWaiter:
    @staticmethod
    def waiter(queue, fetch=Queue.pop):
        got = []
        waiter = Waiter(fetch, lambda queue, item: got.append((queue.name, item.data)))
        queue.wait(waiter)
        return waiter, got

    def test_is_served_first_come_first_served(self, it):
        (_, first), (_, second) = self.waiter(it.queue), self.waiter(it.queue)
        it.push(b"a")
        assert (first, second) == ([(b"work", b"a")], [])
        it.push(b"b", b"c")
        assert second == [(b"work", b"b")]
        assert it.queue.items == 1

    def test_takes_nothing_once_cancelled(self, it):
        (first, first_got), (_, second_got) = self.waiter(it.queue), self.waiter(it.queue)
        first.cancel()
        first.cancel()
        it.push(b"a")
        assert (first_got, second_got) == ([], [(b"work", b"a")])

    def test_that_peeks_leaves_the_item_for_the_next(self, it):
        (_, peeked), (_, popped) = self.waiter(it.queue, Queue.peek), self.waiter(it.queue)
        it.push(b"a")
        assert peeked == popped == [(b"work", b"a")]
        assert it.queue.items == 0

    def test_that_reserves_holds_the_item(self, it):
        _, got = self.waiter(it.queue, Queue.reserve)
        it.push(b"a")
        assert got == [(b"work", b"a")]
        assert len(it.queue.reserved) == 1

    def test_gets_an_item_that_comes_back(self, it):
        it.push(b"a")
        item = it.queue.reserve()
        _, got = self.waiter(it.queue)
        it.queue.abort(item)
        assert got == [(b"work", b"a")]

    def test_is_not_served_with_what_has_expired(self, it):
        _, got = self.waiter(it.queue)
        it.push(b"a", exptime=-1)
        assert got == []
        it.push(b"b")
        assert got == [(b"work", b"b")]

    def test_that_has_gone_without_a_word_is_passed_by(self, it):
        got = []
        it.queue.wait(Waiter(Queue.pop, lambda *_: got.append("gone"), lambda: True))
        _, other = self.waiter(it.queue)
        it.push(b"a")
        assert (got, other) == ([], [(b"work", b"a")])


class TestFlush:
    def test_discards_what_waits_and_spares_what_is_reserved(self, small, it):
        it.push(*[b"%d" % n for n in range(9)])
        item = it.queue.reserve()
        it.commit()
        it.push(b"x")
        it.queue.flush()
        assert (it.queue.items, it.queue.waiting_bytes) == (0, 0)
        assert it.queue.pop() is None
        it.push(b"new")
        it.queue.abort(item)
        assert it.queue.items == 2
        assert it.waiting() == [b"0", b"new"]

    def test_holds_after_a_restart(self, it):
        it.push(b"a", b"b")
        it.commit()
        it.queue.flush()
        it.push(b"c")
        it.restart()
        assert it.waiting() == [b"c"]

    def test_spares_a_reserved_item_over_a_restart(self, it):
        it.push(b"a", b"b", b"c")
        it.queue.pop()
        it.queue.reserve()
        it.queue.flush()
        it.push(b"d")
        it.restart()
        assert it.queue.items == 2
        assert it.waiting() == [b"b", b"d"]


class TestFigures:
    def test_count_what_happened_and_start_again_from_zero(self, it):
        it.push(b"a", b"b", b"c")
        it.push(b"d", exptime=-1)
        it.queue.abort(it.queue.reserve())
        it.waiting()
        it.queue.flush()

        def figures():
            queue = it.queue
            return (
                queue.counts.total_items,
                queue.counts.expired_items,
                queue.counts.canceled_transactions,
                queue.counts.total_flushes,
                queue.counts.discarded,
                queue.counts.transactions,
            )

        assert figures()[:4] == (4, 1, 1, 1)
        it.queue.reset_counts()
        assert figures() == (0, 0, 0, 0, 0, 0)

    def test_say_how_long_the_last_item_had_waited_unless_the_queue_is_empty(self, it):
        it.push(b"a", b"b")
        assert it.queue.age_ms == 0
        it.now += 1500
        it.queue.pop()
        assert it.queue.age_ms == 1500
        it.queue.pop()
        assert it.queue.age_ms == 0


class TestRefusal:
    """The log has no room, or LevelDB cannot be written."""

    REFUSAL = JournalError("no room")

    def test_takes_nothing_in_and_gives_out_what_there_is(self, it):
        it.push(b"a", b"b")
        it.log.segment.refusal = self.REFUSAL
        for use in (lambda: it.push(b"c"), lambda: it.delay(1, b"c"), lambda: begin_upload(it.queue, 1)):
            with pytest.raises(JournalError, match="no room"):
                use()
        it.queue.abort(it.queue.reserve())
        assert it.waiting() == [b"a", b"b"]
        it.log.segment.refusal = None
        it.push(b"d")
        it.kill()
        assert it.waiting() == [b"d"]

    def test_leaves_a_delayed_item_where_it_is(self, it):
        it.delay(1000, b"a")
        it.now += 1000
        it.log.segment.refusal = self.REFUSAL
        with pytest.raises(JournalError):
            it.queue.sweep()
        it.log.segment.refusal = None
        assert it.waiting() == [b"a"]

    def test_of_an_item_full_queues_would_discard_for_discards_nothing(self, it):
        it.set(max_items=1, discard_old_when_full=True)
        it.push(b"a")
        it.log.segment.refusal = self.REFUSAL
        with pytest.raises(JournalError):
            it.push(b"b")
        assert it.waiting() == [b"a"]


class TestDamage:
    """Items are counted, and not there."""

    @pytest.fixture
    def it(self, it):
        it.push(b"a", b"lost", b"c")
        it.commit()
        it.journal.database.open().delete(item_key(2))
        it.kill()
        return it

    def fetched(self, it, fetch=Queue.pop):
        """What a reader gets who waits while something is being mended."""
        while True:
            try:
                return fetch(it.queue)
            except NotReadyError:
                it.threads.run_all()

    @pytest.mark.parametrize("fetch", [Queue.pop, Queue.reserve, Queue.peek])
    def test_is_counted_out_and_what_is_behind_it_is_served(self, it, fetch):
        assert self.fetched(it).data == b"a"
        assert self.fetched(it, fetch).data == b"c"
        assert it.journal.damaged_items == 1
        if fetch is Queue.pop:
            assert self.fetched(it) is None
            assert (it.queue.items, it.queue.waiting_bytes) == (0, 0)

    def test_does_not_keep_what_comes_later_from_being_fetched(self, it):
        it.push(b"d")
        assert [self.fetched(it).data for _ in range(3)] == [b"a", b"c", b"d"]
        it.push(b"e")
        assert self.fetched(it).data == b"e"
        assert self.fetched(it) is None

    def test_ends_with_a_flush(self, it):
        it.queue.flush()
        assert it.queue.pop() is None
        it.push(b"d")
        it.kill()
        assert it.waiting() == [b"d"]

    def test_of_what_is_reserved_meanwhile_is_found_just_so(self, it):
        held = [self.fetched(it, Queue.reserve) for _ in range(2)]
        assert self.fetched(it, Queue.reserve) is None
        for item in held:
            it.queue.close(item)
        assert self.fetched(it, Queue.reserve) is None
        assert it.queue.items == 0


def test_an_item_that_is_not_counted_is_an_error_and_not_the_end(it):
    it.push(b"a", b"b")
    it.commit()
    it.journal.state.items = 1
    assert it.queue.pop().data == b"a"
    for _ in range(2):
        with pytest.raises(JournalError, match="not as many items as are counted"):
            it.queue.pop()
    it.queue.flush()
    assert it.queue.pop() is None


def test_an_upload_that_fails_in_any_way_is_an_error_and_told(it):
    faults = []
    it.queue.on_fault = lambda _, error: faults.append(error)
    upload = begin_upload(it.queue, 1, lambda: (it.queue,))
    upload.write(b"x")
    it.queue.times = Timeline(lambda: "noon")
    told = []
    upload.finish(0, 0, told.append, sync=False)
    it.threads.run_all()
    assert "internal error" in str(told[0])
    assert faults == [told[0].__cause__]


def test_a_deletion_harms_nobody_who_holds_an_item(it):
    it.push(b"a")
    held = it.queue.reserve()
    it.queue.retire()
    it.queue.close(held)
    it.queue.abort(held)
    assert it.waiting() == []


class TestUpload:
    """A large item, in chunks."""

    CONTENT = b"x" * CHUNK_BYTES + b"y" * CHUNK_BYTES + b"z"

    def begin(self, it, content=CONTENT):
        upload = begin_upload(it.queue, len(content))
        for at in range(0, len(content), CHUNK_BYTES):
            upload.write(content[at : at + CHUNK_BYTES])
        return upload

    def finish(self, it, upload, *, exptime=0):
        told = []
        upload.finish(7, exptime, told.append, sync=False)
        it.threads.run_all()
        return told

    def read(self, it, item):
        reader = it.queue.open_blob(item)
        content = b""
        while (data := reader.read(lambda: None)) != b"":
            content += data or b""
            it.threads.run_all()
        reader.close()
        return content

    def leftovers(self, it):
        """Files and markers of blobs, once all is tidied up after a restart."""
        for _ in range(2):
            it.restart()
            it.tick()
        assert not it.journal.blobs.obsolete
        return [file.name for file in (it.path / "work" / "blobs").glob("*")]

    def test_is_an_item_like_any_once_finished(self, it):
        it.push(b"before")
        upload = self.begin(it)
        assert it.queue.items == 1
        it.push(b"between")
        assert self.finish(it, upload) == [None]
        it.push(b"after")
        it.restart()
        assert it.queue.waiting_bytes == len(self.CONTENT) + len(b"beforebetweenafter")
        assert [it.queue.pop().data, it.queue.pop().data] == [b"before", b"between"]
        item = it.queue.reserve()
        assert (item.data, item.size, item.flags) == (None, len(self.CONTENT), 7)
        assert self.read(it, item) == self.CONTENT
        assert it.queue.pop().data == b"after"
        it.queue.abort(item)
        assert self.read(it, it.queue.pop()) == self.CONTENT
        assert self.leftovers(it) == []

    def test_can_be_read_to_its_end_after_it_is_gone(self, it):
        self.finish(it, self.begin(it, self.CONTENT * 9))
        reader = it.queue.open_blob(it.queue.pop())
        it.commit()
        blobs = it.journal.blobs.take_obsolete(it.journal.database.stored_change)
        assert len(blobs) == 1
        it.journal.blobs.delete(blobs)
        content = b""
        while (data := reader.read(lambda: None)) != b"":
            content += data or b""
            it.threads.run_all()
        reader.close()
        assert content == self.CONTENT * 9

    def test_wakes_who_waits(self, it):
        got = []
        it.queue.wait(Waiter(Queue.pop, lambda _, item: got.append(item.size)))
        self.finish(it, self.begin(it))
        assert got == [len(self.CONTENT)]

    def test_expires_as_others_do(self, it):
        self.finish(it, self.begin(it), exptime=1)
        it.now += 1000
        assert it.queue.pop() is None
        assert self.leftovers(it) == []

    @pytest.mark.parametrize("written", [False, True])
    def test_abandoned_leaves_nothing(self, it, written):
        upload = self.begin(it)
        if written:
            it.commit()
        upload.abandon()
        it.commit()
        assert it.queue.items == 0
        assert self.leftovers(it) == []

    @pytest.mark.parametrize("committed", [False, True])
    def test_cut_off_by_a_kill_leaves_nothing(self, it, committed):
        self.begin(it)
        it.threads.run_all()
        if committed:
            it.commit()
        it.kill()
        assert it.queue.items == 0
        assert self.leftovers(it) == []

    @pytest.mark.parametrize("committed", [False, True])
    def test_finished_survives_a_kill(self, it, committed):
        it.commit()
        upload = self.begin(it)
        if committed:
            it.commit()
        self.finish(it, upload)
        it.kill()
        it.tick()
        it.tick()
        assert self.read(it, it.queue.pop()) == self.CONTENT
        assert self.leftovers(it) == []

    @pytest.mark.parametrize("removal", ["pop", "flush"])
    def test_removed_leaves_nothing(self, it, removal):
        self.finish(it, self.begin(it))
        getattr(it.queue, removal)()
        assert self.leftovers(it) == []

    def test_staged_and_removed_in_one_turn_leaves_nothing(self, it):
        upload = self.begin(it)
        upload.finish(7, 0, lambda _: it.queue.pop(), sync=False)
        it.threads.run_all()
        assert it.queue.items == 0
        assert self.leftovers(it) == []

    def test_fails_if_the_queue_was_deleted_meanwhile(self, it):
        upload = self.begin(it)
        it.queue.retire()
        with pytest.raises(JournalError, match="deleted"):
            upload.write(b"x")
        (error,) = self.finish(it, upload)
        assert "deleted" in str(error)
        upload.abandon()

    def test_that_cannot_be_written_is_not_set(self, it):
        upload = self.begin(it)
        upload._path.unlink()
        (error,) = self.finish(it, upload)
        assert isinstance(error, JournalError)
        assert it.queue.items == 0
        assert self.leftovers(it) == []

    def test_whose_file_cannot_be_made_is_refused(self, it):
        (it.path / "work" / "blobs").touch()
        with pytest.raises(JournalError, match="cannot write"):
            begin_upload(it.queue, 4)
        (it.path / "work" / "blobs").unlink()
        assert self.leftovers(it) == []

    def test_damaged_on_disk_is_put_aside(self, it):
        self.finish(it, self.begin(it))
        (file,) = (it.path / "work" / "blobs").iterdir()
        file.write_bytes(file.read_bytes()[:-1])
        for fetch in (it.queue.pop, it.queue.peek, it.queue.reserve):
            assert fetch() is None
        assert (it.queue.items, it.queue.journal.damaged_items) == (0, 1)
        assert (it.path / "work" / "damaged" / "1").stat().st_size == len(self.CONTENT) + 3 * 4 - 1
