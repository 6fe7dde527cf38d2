"""Which server of a fleet is asked next: no I/O, and the clock is a number."""

from collections import Counter

from darner.client.fleet import FIRST_PAUSE_S, MAX_PAUSE_S, Fleet

NAMES = ["a:1", "b:1", "c:1"]


def test_turns_go_round():
    fleet = Fleet(NAMES)
    assert [list(fleet.order(0)) for _ in range(4)] == [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]


def test_a_server_that_is_down_is_passed_over_for_a_pause():
    fleet = Fleet(NAMES)
    fleet.failed(1, 10)
    assert all(1 not in fleet.order(10 + FIRST_PAUSE_S / 2) for _ in range(3))
    assert 1 in fleet.order(10 + FIRST_PAUSE_S)


def test_after_a_pause_one_caller_alone_tries_it():
    fleet = Fleet(NAMES)
    fleet.failed(1, 10)
    orders = [list(fleet.order(11)) for _ in range(3)]
    assert sum(1 in order for order in orders) == 1


def test_a_caller_that_stops_before_it_has_not_tried_it():
    fleet = Fleet(NAMES)
    fleet.failed(2, 10)
    assert next(fleet.order(20)) == 0
    assert 2 in fleet.order(20)


def test_pauses_are_doubled_up_to_a_bound():
    fleet, now, pauses = Fleet(NAMES), 0.0, []
    for _ in range(10):
        fleet.failed(1, now)
        pause = FIRST_PAUSE_S
        while 1 not in fleet.order(now + pause):
            pause *= 2
        pauses.append(pause)
        now += pause
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert max(pauses) <= MAX_PAUSE_S * 2
    assert 1 in fleet.order(now + MAX_PAUSE_S)


def test_a_server_that_was_reached_is_up_at_once_and_its_pauses_begin_anew():
    fleet = Fleet(NAMES)
    fleet.failed(1, 0)
    fleet.failed(1, 1)
    fleet.reached(1)
    assert 1 in fleet.order(1)
    fleet.failed(1, 2)
    assert 1 in fleet.order(2 + FIRST_PAUSE_S)


def test_if_all_are_down_the_one_whose_pause_ends_first_is_tried():
    fleet = Fleet(NAMES)
    for server, now in ((0, 3), (1, 1), (2, 2)):
        fleet.failed(server, now)
    assert list(fleet.order(1.2)) == [1]


def test_a_single_server_is_always_tried():
    fleet = Fleet(["a:1"])
    fleet.failed(0, 5)
    assert list(fleet.order(5)) == [0]


def test_an_id_has_its_home_whatever_the_order_of_the_servers():
    other_way = Fleet(NAMES[::-1])
    fleet = Fleet(NAMES)
    for number in range(100):
        id = b"order-%d" % number
        assert NAMES[fleet.home(id)] == NAMES[::-1][other_way.home(id)]


def test_ids_are_spread_over_all_servers():
    fleet = Fleet(NAMES)
    counts = Counter(fleet.home(b"order-%d" % number) for number in range(3000))
    assert min(counts.values()) > 800


def test_a_server_that_leaves_moves_only_its_own_ids():
    fleet, smaller = Fleet(NAMES), Fleet(NAMES[:2])
    for number in range(300):
        id = b"order-%d" % number
        if fleet.home(id) != 2:
            assert smaller.home(id) == fleet.home(id)
