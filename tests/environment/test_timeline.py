"""Stamps: their meaning while the wall clock is set, and the earliest one. The clocks are numbers."""

import pytest

from darner.environment.timeline import (
    FIRST_RUN,
    NEVER,
    RUNS_END,
    Earliest,
    Timeline,
    end_of,
    run_of,
    start_of,
)

NOW = 1_700_000_000_000
UP = 5_000
HOUR = 3_600_000
RUN, BEFORE = FIRST_RUN + 7, FIRST_RUN + 3


class Machine:
    """The two clocks of a machine, and the run that reads them."""

    def __init__(self):
        self.up, self.wall = UP, NOW
        earlier = {BEFORE: HOUR}
        self.times = Timeline(lambda: self.wall, lambda: self.up, RUN, NOW - UP, 0, earlier)

    def pass_(self, ms):
        self.up += ms
        self.wall += ms


@pytest.fixture
def machine():
    return Machine()


class TestStamp:
    @pytest.mark.parametrize("run", [FIRST_RUN, RUN, RUNS_END - 1])
    def test_knows_its_run(self, run):
        assert run_of(start_of(run)) == run_of(start_of(run) + NOW) == run_of(end_of(run) - 1) == run
        assert end_of(run) <= NEVER < 1 << 63

    @pytest.mark.parametrize("date", [0, 1, NOW, 1 << 53, end_of(0) - 1])
    def test_of_no_run_is_a_date_as_late_as_there_ever_was_one(self, date, machine):
        assert run_of(date) == 0
        assert machine.times.date_ms(date) == date

    def test_of_now_is_of_the_run_and_has_the_date_of_the_wall_clock(self, machine):
        now = machine.times.now()
        assert run_of(now) == RUN
        assert machine.times.date_ms(now) == NOW
        machine.pass_(10)
        assert machine.times.now() == now + 10

    def test_without_a_monotonic_clock_is_a_date(self):
        assert Timeline(lambda: NOW).now() == NOW


class TestStep:
    @pytest.mark.parametrize("by", [HOUR, -HOUR, 8760 * HOUR, -8760 * HOUR, 3])
    def test_is_told_once_and_moves_the_dates_of_the_run_alone(self, machine, by):
        times = machine.times
        now = times.now()
        before = start_of(BEFORE) + NOW
        machine.pass_(250)
        machine.wall += by
        assert times.look() == by
        assert times.look() == 0
        assert times.now() == now + 250
        assert times.date_ms(now) == NOW + by
        assert times.date_ms(before) == NOW + HOUR
        assert times.date_ms(start_of(BEFORE + 1) + NOW) == NOW

    def test_is_none_if_the_process_was_held_up_between_two_looks(self, machine):
        ups = [UP, UP + HOUR]
        times = Timeline(lambda: NOW + HOUR, lambda: ups.pop(0), RUN, NOW - UP)
        assert times.look() == 0
        assert times.date_ms(start_of(RUN) + NOW) == NOW

    def test_leaves_what_is_of_the_run_where_it_was_and_moves_the_rest(self, machine):
        times = machine.times
        soon, date, before = times.now() + 1000, NOW + 1000, start_of(BEFORE) + NOW - HOUR + 1000
        stamps = (soon, date, before)
        assert not any(times.has_passed(stamp, times.now()) for stamp in stamps)
        machine.wall += HOUR
        times.look()
        assert [times.has_passed(stamp, times.now()) for stamp in stamps] == [False, True, True]
        machine.wall -= 2 * HOUR
        times.look()
        machine.pass_(1000)
        assert [times.has_passed(stamp, times.now()) for stamp in stamps] == [True, False, False]

    def test_makes_no_age_less_than_0(self, machine):
        times = machine.times
        stamp, date = times.now(), NOW
        machine.pass_(500)
        machine.wall -= HOUR
        times.look()
        assert times.age_ms(stamp, times.now()) == 500
        assert times.age_ms(date, times.now()) == 0


class TestEarliest:
    def test_is_never_at_first_and_when_all_is_forgotten(self, machine):
        earliest = Earliest(machine.times)
        assert earliest.is_never()
        earliest.note(NOW)
        assert not earliest.is_never()
        earliest.clear()
        assert earliest.is_never()
        assert not earliest.has_passed(machine.times.last)

    def test_tells_whether_a_stamp_is_earlier_than_those_of_its_kind(self, machine):
        earliest, now = Earliest(machine.times), machine.times.now()
        assert earliest.note(now + 10)
        assert not earliest.note(now + 11)
        assert earliest.note(now + 9)
        assert earliest.note(NOW + 20)
        assert not earliest.note(start_of(BEFORE) + NOW)
        assert earliest.note(start_of(BEFORE) + NOW - HOUR + 19)

    def test_has_passed_when_the_first_of_either_kind_has(self, machine):
        times, earliest = machine.times, Earliest(machine.times)
        earliest.note(times.now() + 1000)
        earliest.note(NOW + HOUR)
        assert not earliest.has_passed(times.now())
        assert earliest.has_passed(times.now() + 1000)
        machine.wall += HOUR
        times.look()
        assert earliest.has_passed(times.now())
