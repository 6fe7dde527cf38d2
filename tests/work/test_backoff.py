"""The pause before something that failed is tried again."""

import itertools

from darner.work.backoff import pause_s


def test_the_pause_doubles_up_to_the_longest():
    pauses = [pause_s(failures, 1.0, 10.0, lambda: 0.0) for failures in range(6)]
    assert pauses == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_a_random_share_of_up_to_a_half_is_left_out():
    assert pause_s(2, 1.0, 10.0, lambda: 0.5) == 3.0
    assert pause_s(2, 1.0, 10.0, lambda: 0.999999) > 2.0


def test_however_often_it_failed_the_pause_is_a_number():
    assert pause_s(65_535, 1.0, 600.0, itertools.repeat(0.0).__next__) == 600.0
    assert pause_s(65_535, 0.0, 600.0, itertools.repeat(0.0).__next__) == 0.0
