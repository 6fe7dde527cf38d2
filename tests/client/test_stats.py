"""Typed figures, out of the lines of `stats`."""

from darner.client import stats

LINES = [
    ("queue_x_items", "3"),
    ("queue_x_total_items", "4"),
    ("queue_x_age", "1500"),
    ("queue_x_novelty", "5"),
    ("queue_x_cursor_a_b_lag", "2"),
    ("queue_x_foo_items", "7"),
    ("queue_x_foo_bytes", "8"),
    ("queue_x_total_items", "9"),
    ("queue_x_total_total_items", "10"),
    ("queue_%C3%BC_items", "1"),
    ("queue_y_out_of_service", "it%20is%20damaged"),
]


def test_a_queue_is_told_from_its_figures_though_both_have_underscores():
    found = stats.queue_stats(LINES)
    assert list(found) == ["x", "x_foo", "x_total", "ü", "y"]
    assert (found["x"].items, found["x"].total_items) == (3, 4)
    assert (found["x_foo"].items, found["x_foo"].bytes) == (7, 8)
    assert (found["x_total"].items, found["x_total"].total_items) == (9, 10)


def test_times_are_in_seconds():
    assert stats.queue_stats(LINES)["x"].age == 1.5


def test_lags_of_cursors_are_by_name_and_unknown_figures_are_kept():
    x = stats.queue_stats(LINES)["x"]
    assert x.cursor_lags == {"a_b": 2}
    assert x.extra == {"novelty": "5"}


def test_a_queue_out_of_service_has_the_reason_alone():
    y = stats.queue_stats(LINES)["y"]
    assert y == stats.QueueStats(name="y", out_of_service="it is damaged")
    assert stats.merged_queues([{"y": y}, {"y": y}])["y"] == y


def test_a_server_has_its_own_figures_and_not_those_of_its_queues():
    found = stats.server_stats([("version", "1.2.3"), ("pid", "7"), ("rusage_user", "0.5"), *LINES])
    assert (found.version, found.pid) == ("1.2.3", 7)
    assert found.extra == {"rusage_user": "0.5"}


def test_figures_of_a_fleet_are_added_up_and_times_are_the_greatest():
    a = stats.server_stats([("version", "1.2.3"), ("uptime", "7"), ("curr_items", "5")])
    b = stats.server_stats([("version", "1.2.0"), ("uptime", "9"), ("curr_items", "6")])
    assert stats.merged_servers([a]) is a
    merged = stats.merged_servers([a, b])
    assert (merged.version, merged.uptime, merged.curr_items) == ("1.2.0", 9, 11)


def test_the_status_of_a_fleet_is_up_only_if_all_are():
    up, readonly = (stats.server_stats([("status", status)]) for status in ("up", "readonly"))
    assert stats.merged_servers([up, up]).status == "up"
    assert stats.merged_servers([up, readonly]).status == "readonly"


def test_queues_of_a_fleet_are_added_up_by_name():
    part = stats.queue_stats(LINES)
    merged = stats.merged_queues([part, {"x": part["x"]}])
    assert (merged["x"].items, merged["x"].age, merged["x"].cursor_lags) == (6, 1.5, {"a_b": 4})
    assert merged["x_foo"].items == 7
