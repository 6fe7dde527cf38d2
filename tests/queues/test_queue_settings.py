"""What the settings of a queue do: limits, expiry, reserved items that come back. The clock is a number."""

import pytest
from doubles import begin_upload, reserve

from darner._records import CHUNK_BYTES
from darner.errors import ItemTooLargeError, JournalError, QueueFullError
from darner.journal import live_ids, reading
from darner.queues.queue import Queue
from darner.queues.waiters import Waiter
from darner.wire.holds import Holds


@pytest.fixture
def scans(monkeypatch):
    """How often a journal was looked through, and from where on."""
    calls, scan = [], reading.scan
    monkeypatch.setattr(reading, "scan", lambda *args: calls.append(args) or scan(*args))
    return calls


class TestLimit:
    def test_of_items_refuses_one_more_and_takes_it_once_there_is_room(self, it):
        it.set(max_items=2)
        it.push(b"a", b"b")
        with pytest.raises(QueueFullError):
            it.push(b"c")
        it.queue.pop()
        it.push(b"c")
        assert it.waiting() == [b"b", b"c"]

    def test_of_bytes_is_never_passed_and_may_be_reached(self, it):
        it.set(max_bytes=5)
        it.push(b"abc", b"")
        with pytest.raises(QueueFullError):
            it.push(b"def")
        it.push(b"de")
        assert it.queue.waiting_bytes == 5

    @pytest.mark.parametrize("limits", [{"max_items": 3}, {"max_bytes": 3}])
    def test_holds_after_a_restart(self, it, limits):
        it.set(**limits)
        it.push(b"a", b"b", b"c")
        it.queue.pop()
        it.restart()
        it.push(b"d")
        with pytest.raises(QueueFullError):
            it.push(b"e")

    def test_discards_the_oldest_until_the_new_item_fits(self, small, it):
        it.set(max_bytes=6, discard_old_when_full=True)
        it.push(b"a", b"b", b"c", b"d", b"e")
        it.push(b"four")
        assert it.queue.counts.discarded == 3
        assert it.waiting() == [b"d", b"e", b"four"]

    def test_discards_nothing_for_an_item_that_could_never_fit(self, it):
        it.set(max_bytes=6, discard_old_when_full=True)
        it.push(b"a", b"b")
        with pytest.raises(QueueFullError):
            it.push(b"seven!!")
        assert it.waiting() == [b"a", b"b"]

    def test_of_no_items_at_all_takes_none(self, it):
        it.set(max_items=0, discard_old_when_full=True)
        with pytest.raises(QueueFullError):
            it.push(b"a")

    def test_counts_what_waits_and_not_what_is_reserved(self, it):
        it.set(max_items=1)
        it.push(b"a")
        held = it.queue.reserve()
        it.push(b"b")
        it.queue.abort(held)
        assert it.queue.items == 2
        with pytest.raises(QueueFullError):
            it.push(b"c")

    def test_spares_what_is_reserved_from_being_discarded(self, it):
        it.set(max_items=1, discard_old_when_full=True)
        it.push(b"a")
        held = it.queue.reserve()
        it.push(b"b", b"c")
        it.queue.abort(held)
        assert it.waiting() == [b"a", b"c"]

    def test_counts_no_expired_items_at_the_head(self, it):
        it.set(max_items=2)
        it.push(b"a", b"b", exptime=5)
        it.now += 5000
        it.push(b"c")
        assert it.queue.counts.expired_items == 2
        assert it.queue.items == 1

    def test_of_an_items_size_is_another_error_than_a_full_queue(self, it):
        it.set(max_item_size=3)
        it.push(b"abc")
        with pytest.raises(ItemTooLargeError):
            it.push(b"abcd")
        with pytest.raises(ItemTooLargeError):
            begin_upload(it.queue, CHUNK_BYTES + 1)

    def test_set_later_holds_from_then_on(self, it):
        it.push(b"a", b"b", b"c")
        it.set(max_items=2)
        with pytest.raises(QueueFullError):
            it.push(b"d")
        it.set()
        it.push(b"d")

    @pytest.mark.parametrize("discards", [False, True])
    def test_is_asked_when_a_large_item_is_begun_and_when_it_is_whole(self, it, discards):
        it.set(max_items=1, discard_old_when_full=discards)
        upload = begin_upload(it.queue, 3)
        it.push(b"a")
        if not discards:
            with pytest.raises(QueueFullError):
                begin_upload(it.queue, 3)
        assert it.queue.items == 1
        told = []
        upload.write(b"xyz")
        upload.finish(0, 0, told.append, sync=False)
        it.commit()
        if discards:
            assert told == [None]
            assert (it.queue.items, it.queue.counts.discarded, it.queue.peek().size) == (1, 1, 3)
        else:
            assert isinstance(told[0], QueueFullError)
            assert it.waiting() == [b"a"]
            it.tick()
            assert not list((it.path / "work" / "blobs").iterdir())


class TestMaxAge:
    def test_ends_an_item_whatever_its_own_expiry(self, it):
        it.set(max_age_ms=3000)
        it.push(b"a")
        it.push(b"b", exptime=10)
        it.push(b"c", exptime=1)
        it.now += 1000
        it.push(b"d")
        it.now += 2000
        assert it.waiting() == [b"d"]
        assert it.queue.counts.expired_items == 3

    def test_holds_for_items_set_before_it_was_changed(self, it):
        it.push(b"a")
        it.now += 1000
        it.set(max_age_ms=1000)
        assert it.queue.peek() is None

    def test_is_swept_without_anybody_fetching(self, small, it):
        it.set(max_age_ms=1000)
        it.push(*[b"x"] * 50)
        it.commit()
        it.now += 1000
        it.sweep()
        assert (it.queue.items, it.queue.counts.expired_items) == (0, 50)


class TestSweep:
    def test_finds_what_has_expired_behind_what_lives(self, small, it):
        it.push(b"head")
        for number in range(40):
            it.push(b"%d" % number, exptime=0 if number % 4 else 5)
        it.commit()
        it.now += 5000
        it.sweep()
        assert (it.queue.items, it.queue.counts.expired_items) == (31, 10)
        it.restart()
        assert it.waiting() == [b"head", *(b"%d" % number for number in range(40) if number % 4)]

    def test_goes_in_slices_of_max_expire_sweep(self, small, it):
        it.set(max_expire_sweep=10)
        it.push(b"head")
        it.push(*[b"x"] * 100, exptime=5)
        it.commit()
        it.now += 5000
        gone = 0
        while it.queue.items > 1:
            it.queue.sweep()
            assert 0 < it.queue.counts.expired_items - gone <= 10
            gone = it.queue.counts.expired_items
            assert it.queue.has_more_upkeep or it.queue.items == 1
        assert it.waiting() == [b"head"]

    def test_looks_at_nothing_before_an_item_may_have_expired(self, small, it, scans):
        it.push(b"head")
        it.push(*[b"x"] * 20, exptime=60)
        it.commit()
        it.sweep()
        before = len(scans)
        it.now += 59_000
        it.sweep()
        assert len(scans) == before
        it.now += 1000
        it.sweep()
        assert len(scans) > before

    def test_of_a_queue_without_expiry_looks_at_nothing_after_a_restart_either(self, it, scans):
        it.push(*[b"x"] * 20)
        it.push(b"y", exptime=1)
        it.commit()
        it.now += 1000
        it.sweep()
        scans.clear()
        it.restart()
        it.sweep()
        assert (it.queue.items, scans) == (20, [])
        assert not it.queue.needs_upkeep

    def test_remembers_over_a_restart_that_items_expire(self, small, it):
        it.push(b"head")
        it.push(b"a", exptime=5)
        it.push(b"b", exptime=9)
        it.push(b"tail")
        it.restart()
        it.sweep()
        assert it.queue.items == 4
        it.now += 5000
        it.sweep()
        assert it.queue.items == 3
        it.restart()
        it.now += 4000
        it.sweep()
        assert it.waiting() == [b"head", b"tail"]

    def test_spares_what_is_reserved_and_finds_it_once_it_is_put_back(self, small, it):
        it.push(b"a", exptime=5)
        it.push(b"b")
        held = it.queue.reserve()
        it.commit()
        it.now += 5000
        it.sweep()
        assert it.queue.counts.expired_items == 0
        it.queue.abort(held)
        it.sweep()
        assert it.queue.counts.expired_items == 1
        assert it.waiting() == [b"b"]

    def test_may_come_while_the_queue_is_being_written(self, small, it):
        it.push(b"head", b"second")
        for number in range(20):
            it.push(b"%d" % number, exptime=5 * (number % 2))
        it.committer.checkpoint(it.journal)
        it.now += 5000
        it.queue.sweep()
        it.threads.run_all()
        it.push(b"x", exptime=5)
        it.committer.checkpoint(it.journal)
        it.now += 5000
        for _ in range(3):
            it.queue.sweep()
        assert it.queue.items == 12
        assert it.queue.pop().data == b"head"
        assert it.waiting() == [b"second", *(b"%d" % number for number in range(0, 20, 2))]
        it.restart()
        assert it.waiting() == []

    @pytest.mark.parametrize("holds", [False, True])
    def test_leaves_a_gap_that_no_reader_has_to_remember(self, small, it, holds):
        it.push(b"first", b"second")
        it.push(*[b"x"] * 20, exptime=5)
        it.push(b"tail", b"last")
        it.commit()
        held = it.queue.reserve() if holds else it.queue.pop()
        it.now += 5000
        it.sweep()
        assert it.waiting() == [b"second", b"tail", b"last"]
        assert len(it.journal.live.removed) <= live_ids.MAX_REMOVED
        if holds:
            it.queue.abort(held)
            it.restart()
            assert it.waiting() == [b"first"]

    def test_drops_large_items_with_their_files(self, it):
        it.push(b"head")
        upload = begin_upload(it.queue, 3)
        upload.write(b"xyz")
        upload.finish(0, 5, lambda _: None, sync=False)
        it.commit()
        it.now += 5000
        it.sweep()
        it.tick()
        assert not list((it.path / "work" / "blobs").iterdir())

    def test_lets_who_waits_go_on_waiting(self, it):
        got = []
        it.queue.wait(Waiter(Queue.pop, lambda _, item: got.append(item.data)))
        it.push(b"late", exptime=-1)
        it.sweep()
        assert not got
        it.push(b"a")
        assert got == [b"a"]


class TestFlushExpired:
    def test_drops_all_that_has_expired_and_says_how_many(self, small, it):
        it.set(max_expire_sweep=4)
        it.push(b"head")
        for number in range(30):
            it.push(b"%d" % number, exptime=5 * (number % 3))
        it.now += 5000
        counts = list(it.queue.flush_expired())
        assert sum(counts) == 10
        assert max(counts) <= 4
        assert sum(it.queue.flush_expired()) == 0
        assert it.queue.items == 21

    def test_may_run_twice_at_once(self, small, it):
        it.set(max_expire_sweep=4)
        it.push(b"head")
        it.push(*[b"x"] * 30, exptime=5)
        it.commit()
        it.now += 5000
        total = 0
        for one, other in zip(it.queue.flush_expired(), it.queue.flush_expired(), strict=False):
            total += one + other
        assert total == 30
        assert it.waiting() == [b"head"]


class TestOpenTimeout:
    def test_takes_an_item_back_to_the_head(self, it):
        it.set(open_timeout_ms=1000)
        it.push(b"a", b"b", b"c")
        it.queue.reserve()
        it.queue.reserve()
        it.now += 999
        it.sweep()
        assert len(it.queue.reserved) == 2
        it.now += 1
        it.sweep()
        assert (len(it.queue.reserved), it.queue.counts.canceled_transactions) == (0, 2)
        assert it.waiting() == [b"a", b"b", b"c"]

    def test_gives_it_to_who_waits_and_leaves_the_old_holder_nothing_to_close(self, it):
        it.set(open_timeout_ms=1000)
        it.push(b"a")
        old, new = Holds(), Holds()
        reserve(old, it.queue, 1)
        it.queue.wait(Waiter(Queue.reserve, new.add))
        it.now += 1000
        it.sweep()
        assert old.close(b"work") == 0
        list(old.release())
        assert new.count(b"work") == 1
        assert new.close(b"work") == 1
        assert it.waiting() == []

    def test_spares_what_is_closed_in_time(self, it):
        it.set(open_timeout_ms=1000)
        it.push(b"a")
        it.queue.close(it.queue.reserve())
        it.now += 1000
        it.sweep()
        assert it.queue.counts.canceled_transactions == 0

    def test_set_later_counts_from_then(self, it):
        it.push(b"a")
        it.queue.reserve()
        it.now += 5000
        it.set(open_timeout_ms=1000)
        it.sweep()
        assert len(it.queue.reserved) == 1
        it.now += 1000
        it.sweep()
        assert it.waiting() == [b"a"]

    def test_set_again_goes_on_counting(self, it):
        it.set(open_timeout_ms=1000)
        it.push(b"a")
        it.queue.reserve()
        it.now += 600
        it.set(open_timeout_ms=1000)
        it.now += 400
        it.sweep()
        assert it.waiting() == [b"a"]


class TestMaxAttempts:
    def test_drops_an_item_that_came_back_so_often_and_counts_it(self, it):
        it.set(max_attempts=2)
        it.push(b"poison", b"b")
        it.queue.abort(it.queue.reserve())
        it.restart()
        it.queue.abort(it.queue.reserve())
        assert it.queue.counts.discarded == 1
        it.restart()
        assert it.waiting() == [b"b"]

    def test_moves_it_to_the_dead_letter_queue(self, it):
        it.set(max_attempts=1, dead_letter_queue="dead")
        it.push(b"poison", b"b")
        it.queue.abort(it.queue.reserve())
        assert it.moved == [(b"poison", b"dead")]
        assert (it.queue.counts.discarded, len(it.queue.reserved), it.queue.items) == (0, 0, 1)


class TestExpireToQueue:
    @pytest.mark.parametrize("expire", ["pop", "sweep", "flush_expired", "push"])
    def test_that_takes_nothing_has_all_stay_and_lose_nothing(self, small, it, expire):
        it.set(expire_to_queue="late", max_items=60)
        it.push(b"held")
        it.push(*[b"%d" % number for number in range(50)], exptime=1)
        it.queue.reserve()
        it.push(b"tail")
        it.now += 1000
        it.moves_left = 7
        do = {"flush_expired": lambda: list(it.queue.flush_expired()), "push": lambda: it.push(*[b"x"] * 20)}
        for _ in range(3):
            with pytest.raises((JournalError, QueueFullError)):
                do.get(expire, getattr(it.queue, expire))()
        it.kill()
        it.moves_left = None
        it.sweep()
        assert sorted(it.moved) == sorted((b"%d" % number, b"late") for number in range(50))
        left = it.waiting()
        assert left[:2] == [b"held", b"tail"]

    def test_that_is_the_queue_itself_only_drops(self, it):
        it.set(expire_to_queue="work")
        it.push(b"a", exptime=-1)
        assert it.queue.pop() is None
        assert not it.moved
