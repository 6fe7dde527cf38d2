"""Which run it is, and what is kept of it over processes, starts of the machine and a full disk."""

import pytest
from doubles import Offload, Silence

from darner import _records
from darner.environment.offload import at_once
from darner.environment.timeline import run_of
from darner.errors import StartError
from darner.queues import clock_runs
from darner.queues.clock_runs import FILE_NAME, MAX_EARLIER, STEP_MS, Runs

NOW = 1_700_000_000_000
HOUR = 3_600_000
YEAR = 8760 * HOUR


class Machine:
    """A machine's clocks and a data directory on it; each `begin` is a process."""

    def __init__(self, path):
        self.path = path
        self.boot = 1
        self.up, self.wall = 60_000, NOW
        self.begin()

    def begin(self):
        self.runs = Runs(self.path, self.boot)
        self.times = self.runs.begin(lambda: self.wall, lambda: self.up)
        self.runs.follow()
        return run_of(self.times.now())

    @property
    def run(self):
        return run_of(self.times.now())

    def pass_(self, ms=0, *, step=0):
        self.up += ms
        self.wall += ms + step

    def step(self, ms, offload=at_once):
        """The clock is set, and that is noticed."""
        self.wall += ms
        self.runs.follow(offload)

    def reboot(self, *, wall):
        self.boot += 1
        self.up, self.wall = 60_000, wall

    @property
    def content(self):
        return (self.path / FILE_NAME).read_bytes()


@pytest.fixture
def silence(monkeypatch):
    silence = Silence()
    monkeypatch.setattr(clock_runs, "log", silence)
    return silence


@pytest.fixture
def machine(tmp_path, silence):
    return Machine(tmp_path)


class TestRun:
    def test_goes_on_in_the_next_process(self, machine):
        run, now = machine.run, machine.times.now()
        machine.pass_(5000)
        assert machine.begin() == run
        assert machine.times.now() == now + 5000

    def test_goes_on_after_the_clock_was_set_under_the_process_before(self, machine):
        run, now = machine.run, machine.times.now()
        machine.step(-YEAR)
        machine.pass_(5000)
        assert machine.begin() == run
        assert machine.times.now() == now + 5000
        assert machine.times.date_ms(now) == NOW - YEAR

    @pytest.mark.parametrize("step", [STEP_MS, -STEP_MS, YEAR, -HOUR])
    def test_is_another_one_if_the_clock_was_set_between_two_processes(self, machine, step):
        run, now = machine.run, machine.times.now()
        machine.pass_(5000, step=step)
        assert machine.begin() != run
        assert machine.times.date_ms(machine.times.now()) == NOW + 5000 + step
        assert machine.times.date_ms(now) == NOW

    def test_goes_on_if_the_clocks_have_drifted(self, machine):
        run = machine.run
        machine.pass_(5000, step=STEP_MS - 1)
        assert machine.begin() == run

    def test_is_another_one_after_the_machine_has_started_anew(self, machine):
        run = machine.run
        machine.reboot(wall=machine.wall)
        assert machine.begin() != run

    def test_is_another_one_each_time_if_no_start_of_the_machine_can_be_told(self, tmp_path):
        machine = Machine(tmp_path)
        machine.boot = 0
        run = machine.begin()
        assert machine.begin() != run

    def test_never_has_the_number_of_one_in_which_the_clock_was_set(self, machine, monkeypatch):
        machine.step(HOUR)
        first = machine.run
        draws = [first - clock_runs.FIRST_RUN, 99]
        monkeypatch.setattr(clock_runs.secrets, "randbelow", lambda _: draws.pop(0))
        machine.reboot(wall=NOW)
        assert machine.begin() == clock_runs.FIRST_RUN + 99


class TestStep:
    @pytest.mark.parametrize("step", [HOUR, -HOUR, YEAR])
    def test_is_said_once_by_how_much_and_in_which_direction(self, machine, silence, step):
        machine.step(step)
        machine.step(0)
        [(_, fields)] = silence.lines
        assert fields == {"direction": "forward" if step > 0 else "back", "seconds": abs(step) / 1000}

    def test_is_said_when_it_is_kept(self, machine, silence):
        threads = Offload()
        machine.step(HOUR, threads)
        assert silence.lines == []
        threads.run_all()
        assert len(silence.lines) == 1


class TestFile:
    def test_keeps_by_how_much_the_clock_was_set_in_each_run(self, machine):
        stamps = []
        for step in (HOUR, -YEAR, 0, 3 * HOUR):
            stamps.append(machine.times.now())
            machine.step(step)
            machine.reboot(wall=NOW)
            machine.begin()
        dates = [machine.times.date_ms(stamp) - NOW for stamp in stamps]
        assert dates == [HOUR, -YEAR, 0, 3 * HOUR]

    def test_is_not_written_for_a_drift(self, machine):
        content = machine.content
        machine.step(STEP_MS - 1)
        assert machine.content == content
        machine.step(1)
        assert machine.content != content

    def test_is_written_in_a_thread_one_time_after_the_other(self, machine):
        threads, content = Offload(), machine.content
        machine.step(HOUR, threads)
        machine.step(HOUR, threads)
        assert len(threads.tasks) == 1
        assert machine.content == content
        threads.run_all()
        machine.step(0, threads)
        threads.run_all()
        now = machine.times.now()
        machine.reboot(wall=NOW)
        machine.begin()
        assert machine.times.date_ms(now) == NOW + 2 * HOUR

    def test_has_a_bound(self, machine, monkeypatch):
        monkeypatch.setattr(clock_runs, "MAX_EARLIER", 3)
        for _ in range(5):
            machine.step(HOUR)
            machine.reboot(wall=NOW)
            machine.begin()
        assert len(machine.content) == 4 + 8 * (4 + 2 * 3)
        assert MAX_EARLIER > 3

    def test_that_cannot_be_written_is_said_once_and_tried_again(self, machine, silence, monkeypatch):
        def fails(*_):
            raise OSError(28, "no space left")

        now = machine.times.now()
        with monkeypatch.context() as patch:
            patch.setattr(clock_runs, "replace_file", fails)
            machine.step(HOUR)
            machine.step(0)
            assert [event[:11] for event, _ in silence.lines] == ["cannot keep", "the system'"]
        machine.step(0)
        machine.reboot(wall=NOW)
        machine.begin()
        assert machine.times.date_ms(now) == NOW + HOUR
        assert len(silence.lines) == 2

    def test_that_is_damaged_is_said_and_keeps_nobody_from_starting(self, machine, silence):
        content = bytearray(machine.content)
        content[-1] ^= 1
        (machine.path / FILE_NAME).write_bytes(content)
        run = machine.run
        assert machine.begin() != run
        [(event, fields)] = silence.lines
        assert event.startswith("cannot read by how much the clock was set")
        assert fields["file"] == str(machine.path / FILE_NAME)

    def test_of_a_newer_darner_is_left_alone(self, machine):
        content = _records.encode_ids([2, 3, 4])
        (machine.path / FILE_NAME).write_bytes(content)
        with pytest.raises(StartError, match="newer darner"):
            machine.begin()
        assert machine.content == content
