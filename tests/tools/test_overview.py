"""What a server is like, and what is wrong with it: from what it said at two moments."""

import pytest

from darner.client.stats import QueueStats, ServerStats
from darner.tools.overview import LATE_S, Kind, Overview, Sample, Trouble, duration


def sample(time_s: float, *queues: QueueStats, **server: object) -> Sample:
    return Sample(time_s, ServerStats(**({"pid": 7, "status": "up"} | server)), {q.name: q for q in queues})


def seen(before: Sample | None, now: Sample):
    return Overview.of("a:1", now, before)


def kinds(overview: Overview) -> list[Kind]:
    return [trouble.kind for trouble in overview.troubles()]


class TestRates:
    def test_are_what_came_and_what_left_for_good(self):
        was = QueueStats(name="q", items=10, total_items=100, open_transactions=2)
        now = QueueStats(name="q", items=20, total_items=150, open_transactions=4, delayed_items=3)
        view = seen(sample(1, was), sample(6, now)).queues["q"]
        assert (view.rate_in, view.rate_out) == (10.0, 7.0)

    def test_are_not_known_from_one_look(self):
        view = seen(None, sample(6, QueueStats(name="q", items=20))).queues["q"]
        assert (view.rate_in, view.rate_out) == (None, None)

    @pytest.mark.parametrize(
        ("queue", "server"),
        [
            (QueueStats(name="q", total_items=150), {"pid": 8}),
            (QueueStats(name="q", total_items=3), {}),
            (QueueStats(name="q", total_items=150, create_time=5), {}),
        ],
        ids=["the server was started again", "the counters were reset", "the queue was made again"],
    )
    def test_are_not_known_if_what_was_counted_before_is_gone(self, queue, server):
        was = QueueStats(name="q", total_items=100)
        view = seen(sample(1, was), sample(6, queue, **server)).queues["q"]
        assert view.rate_in is None

    def test_what_came_back_makes_no_rate_below_0(self):
        was, now = QueueStats(name="q", items=1), QueueStats(name="q", items=5)
        assert seen(sample(1, was), sample(2, now)).queues["q"].rate_out == 0


class TestTroubles:
    def test_a_sound_server_has_none(self):
        busy = QueueStats(name="q", items=20, head_age=LATE_S - 1)
        assert seen(None, sample(1, busy, limit_maxbytes=1 << 40)).troubles() == []

    def test_a_server_that_does_not_answer_is_all_there_is_to_say(self):
        overview = Overview("a:1", error="refused", queues={})
        assert overview.troubles() == [Trouble(Kind.UNREACHABLE, 0, "a:1", "", "refused")]

    def test_the_worst_is_first(self):
        queues = [
            QueueStats(name="late", items=1, head_age=LATE_S + 5, total_items=1),
            QueueStats(name="later", items=1, head_age=LATE_S + 9, total_items=1),
            QueueStats(name="full", items=5, max_items=5),
            QueueStats(name="broken", out_of_service="LevelDB is damaged"),
        ]
        found = seen(None, sample(2, *queues)).troubles()
        assert [trouble.queue for trouble in found] == ["broken", "full", "later", "late"]

    @pytest.mark.parametrize(
        ("figures", "kind"),
        [
            ({}, Kind.UNREAD),
            ({"open_transactions": 2}, Kind.STALLED),
            ({"total_items": 1}, Kind.LATE),
        ],
        ids=["nobody takes items", "readers hang", "readers are slow"],
    )
    def test_an_old_head_is_told_apart_by_what_readers_do(self, figures, kind):
        was = {"items": 3, "head_age": LATE_S, "open_transactions": 0}
        now = QueueStats(name="q", **(was | figures))
        before = QueueStats(name="q", **(was | figures | {"total_items": 0}))
        assert kinds(seen(sample(1, before), sample(2, now))) == [kind]

    def test_what_is_read_through_cursors_alone_is_not_unread(self):
        queue = QueueStats(name="q", items=3, head_age=LATE_S, cursor_lags={"billing": 0})
        assert kinds(seen(sample(1, queue), sample(2, queue))) == []

    def test_queues_out_of_service_that_an_older_server_does_not_name_are_counted(self):
        assert kinds(seen(None, sample(1, queues_out_of_service=2))) == [Kind.OUT_OF_SERVICE]

    @pytest.mark.parametrize(
        ("server", "kind"),
        [
            ({"status": "readonly"}, Kind.STATUS),
            ({"bytes": 100, "limit_maxbytes": 100}, Kind.FULL),
            ({"bytes": 100, "limit_maxbytes": 5000}, Kind.FULL),
        ],
    )
    def test_the_server_itself(self, server, kind):
        assert kinds(seen(None, sample(1, **server))) == [kind]

    def test_a_queue_is_full_by_its_bytes_too(self):
        assert kinds(seen(None, sample(1, QueueStats(name="q", bytes=9, max_bytes=9)))) == [Kind.FULL]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (0.25, "250ms"), (4.2, "4.2s"), (59.9, "59s"), (185, "3m05s"), (3599, "59m59s"),
        (7800, "2h10m"), (86400 * 9 + 3600 * 4, "9d04h"),
    ],
)  # fmt: skip
def test_a_time_is_shown_in_two_units(seconds, text):
    assert duration(seconds) == text
