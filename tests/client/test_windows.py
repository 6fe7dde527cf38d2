"""How much of a pipeline is sent before its replies are read, and what is made again."""

import pytest

from darner.client import (
    BadRequestError,
    ConnectionFailedError,
    ConnectionLostError,
    QueueFullError,
    RequestTimeoutError,
)
from darner.client.gets import More, Pages
from darner.client.protocol import END, Reply, Value
from darner.client.puts import Run, put_request
from darner.client.repetition import Repetition
from darner.client.windows import SETS, GetWindow, window_of_sets

STORED = Reply(b"STORED")


def value(number: int, size: int = 1) -> Value:
    return Value(b"work", 0, bytes(size), number)


def found(number: int, size: int = 1) -> Reply:
    return Reply(END, [value(number, size)])


class TestSets:
    def test_are_sent_together_up_to_a_number(self):
        count, parts = window_of_sets([b"x"] * 1000, 0)
        assert (count, parts) == (SETS, [b"x" * SETS])
        assert window_of_sets([b"x"] * 1000, 990) == (10, [b"x" * 10])

    def test_are_sent_together_up_to_a_size(self):
        requests = [bytes(50_000)] * 100
        count, parts = window_of_sets(requests, 0)
        assert count == 3
        assert len(parts[0]) == 150_000

    def test_that_are_large_are_sent_alone_and_not_copied(self):
        data = bytes(100_000)
        large = put_request(None, "work", data, delay=0, expire=0, id=None, sync=False)
        assert window_of_sets([b"x", large, b"y"], 0) == (1, [b"x"])
        count, parts = window_of_sets([b"x", large, b"y"], 1)
        assert count == 1
        assert parts[1] is data


class TestRun:
    def test_has_two_windows_under_way_at_most(self):
        run = Run([b"x"] * 1000)
        sent = 0
        while window := run.window():
            sent += window[0]
        assert sent == 2 * SETS
        for _ in range(SETS):
            run.took(STORED)
        assert run.window()[0] == SETS

    def test_is_over_when_all_is_answered(self):
        run = Run([b"x"] * 3)
        assert run.window() == (3, [b"xxx"])
        for _ in range(3):
            assert not run.is_over
            run.took(STORED)
        assert run.is_over
        assert run.outcomes() == [None] * 3

    def test_sends_no_more_once_one_has_failed(self):
        run = Run([b"x"] * 1000)
        run.window()
        run.took(Reply(b"NOT_STORED"))
        assert run.window() is None
        for _ in range(SETS - 1):
            run.took(STORED)
        assert run.is_over
        outcomes = run.outcomes()
        assert isinstance(outcomes[0], QueueFullError)
        assert outcomes[1:SETS] == [None] * (SETS - 1)
        assert all(isinstance(outcome, ConnectionFailedError) for outcome in outcomes[SETS:])

    def test_that_is_lost_knows_what_was_stored_and_what_was_not_sent(self):
        run = Run([b"x"] * (SETS + 2))
        run.window()
        run.took(STORED)
        lost = ConnectionLostError("gone")
        run.lost(lost)
        assert run.outcomes()[:SETS] == [None] + [lost] * (SETS - 1)
        assert all(isinstance(outcome, ConnectionFailedError) for outcome in run.outcomes()[SETS:])


class TestGets:
    def test_ask_for_fewer_where_items_are_large(self):
        window = GetWindow(20)
        assert window.size(1000) == 819
        window.took([value(1, 1 << 20)])
        assert window.size(1000) == 63

    def test_end_with_64_mib(self):
        window = GetWindow(20)
        window.took([value(1, 1 << 26)])
        assert not window.has_room

    def test_of_more_end_when_there_are_no_more(self):
        more = More([b"work"], value(1), 10)
        assert more.requests() == [b"gets work/open\r\n"] * 9
        more.took([found(2), found(3), *[Reply(END)] * 7])
        assert more.requests() == []
        assert [value.token for value in more.values] == [1, 2, 3]

    def test_of_one_are_none(self):
        assert More([b"work"], value(1), 1).requests() == []

    def test_of_pages_begin_behind_the_last_item(self):
        pages = Pages(b"work", 1, 100)
        assert pages.requests() == [b"gets work/peek/from=1\r\n"]
        assert pages.took([found(5)]) == [value(5)]
        assert pages.requests() == [b"gets work/peek/from=%d\r\n" % id for id in (6, 7)]
        # the second guess meets what the first has found
        assert pages.took([found(9), found(9)]) == [value(9)]
        assert not pages.is_over
        assert pages.took([Reply(END)]) == []
        assert pages.is_over

    def test_of_pages_are_no_more_than_asked(self):
        pages = Pages(b"work", 1, 5)
        at = 1
        for _ in range(6):
            requests = pages.requests()
            assert len(requests) <= 5
            pages.took([found(at + number) for number in range(len(requests))])
            at += len(requests)
        assert len(pages.requests()) == 5

    def test_of_pages_from_nowhere_are_refused(self):
        for start, page in ((0, 1), (1, 0)):
            with pytest.raises(BadRequestError):
                Pages(b"work", start, page)


class TestRepetition:
    def test_of_what_was_lost_comes_at_once_then_after_longer_pauses(self):
        repetition = Repetition(60)
        lost = ConnectionLostError("gone")
        pauses = [repetition.pause_after(lost) for _ in range(8)]
        assert pauses == [0, 0.05, 0.1, 0.2, 0.4, 0.8, 1, 1]

    def test_goes_on_while_the_server_is_away_after_a_loss(self):
        repetition = Repetition(60)
        repetition.pause_after(ConnectionLostError("gone"))
        assert repetition.pause_after(ConnectionFailedError("refused")) > 0

    @pytest.mark.parametrize("error", [ConnectionFailedError("refused"), RequestTimeoutError("late")])
    def test_is_none_of_what_was_not_sent_or_came_late(self, error):
        with pytest.raises(type(error)):
            Repetition(60).pause_after(error)

    def test_ends_with_the_error_of_the_loss_when_the_time_is_over(self):
        repetition = Repetition(0)
        with pytest.raises(ConnectionLostError):
            repetition.pause_after(ConnectionLostError("gone"))
