"""The last minutes of queues, and their lines."""

import pytest

from darner.web import history, sparkline
from darner.web.history import GAP, POINTS, STEP_S, Histories, History


def points(of: History, at: float, group: int = 1) -> list[float]:
    return of.series("items", at * STEP_S, group)


def test_the_last_figure_of_a_step_is_its_point():
    past = History()
    past.add(100, [5] * 6)
    past.add(101, [7] * 6)
    past.add(110, [8] * 6)
    assert points(past, 11)[-2:] == [7, 8]
    assert points(past, 11)[:-2] == [GAP] * (POINTS - 2)


def test_what_was_not_asked_is_a_gap_and_a_lap_later_all_is_forgotten():
    past = History()
    past.add(0, [1] * 6)
    past.add(3 * STEP_S, [2] * 6)
    assert points(past, 3)[-4:] == [1, GAP, GAP, 2]
    assert points(past, 5)[-6:] == [1, GAP, GAP, 2, GAP, GAP]
    assert points(past, POINTS + 2) == [2] + [GAP] * (POINTS - 1)
    assert points(past, 9 * POINTS) == [GAP] * POINTS
    past.add(9 * POINTS * STEP_S, [3] * 6)
    assert points(past, 9 * POINTS) == [GAP] * (POINTS - 1) + [3]


def test_groups_begin_at_fixed_times_and_have_the_greatest_of_their_points():
    past = History()
    for step in range(1000, 1000 + POINTS):
        past.add(step * STEP_S, [step % 7] * 6)
    before = points(past, 999 + POINTS, 3)
    past.add((1000 + POINTS) * STEP_S, [1] * 6)
    after = points(past, 1000 + POINTS, 3)
    assert len(before) == POINTS // 3
    assert before[1] == max(step % 7 for step in (1005, 1006, 1007))
    assert set(before[1:-2]) <= set(after)


def test_queues_that_are_gone_are_forgotten_and_there_is_a_bound(monkeypatch):
    monkeypatch.setattr(history, "MAX_QUEUES", 2)
    kept = Histories()
    first = kept.begin("a", "one")
    assert kept.begin("b", "one") not in (None, first)
    assert kept.begin("a", "three") is None
    assert kept.begin("a", "one") is first
    kept.keep("a", {"three"})
    assert kept.find("a", "one") is None
    assert kept.find("b", "one") is not None
    assert kept.begin("a", "three") is not None


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ([0, 0, 0, 0], "M0 19l3 0"),
        ([1, 1, 2, 2, 2], "M0 10l1 0 1-9 2 0"),
        ([GAP, 4, GAP, 4, 4], "M1 1h1M3 1l1 0"),
        ([0, 2, GAP, 1, 2, GAP], "M0 19l1-18M3 10l1-9"),
        ([GAP, GAP], ""),
    ],
)
def test_a_line_has_a_stroke_for_each_change_and_none_in_a_gap(line, path):
    assert sparkline.paths(line) == [path]


def test_lines_share_a_scale():
    assert sparkline.paths([10, 10], [5, 5]) == ["M0 1l1 0", "M0 10l1 0"]
