"""`darner check`: it reports what a server would log at its start."""

import contextlib
import os
import re
import shutil

import pytest
from brokers import Data
from checksum import crc32c
from leveldbs import opened_db
from running import run_darner, running

import darner.repair.check
from darner import _records
from darner.errors import RepairError
from darner.journal.layout import STATE_NAME, stored_state
from darner.journal.snapshot import VERSION
from darner.queues import names
from darner.repair.check import check
from darner.repair.rebuild import Rebuild
from darner.repair.repair import repair, repair_all

NEWER = "use the newer darner"


def said_at_start(path, *options):
    """Return a server's warnings and errors at its start: their levels, objects and reasons."""
    with running(path, *options) as server:
        server.stop()
    lines = [line for line in server.log.splitlines() if " level=info " not in line]
    return [
        (re.search(r"level=(\w+)", line)[1], re.findall(r'(?:reason|path|file|queue)=("[^"]*"|\S+)', line))
        for line in lines
    ]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "data"
    data = Data(path)
    data.push(b"work", b"one", b"two")
    data.push(b"sound", b"one")
    data.restart()
    data.close()
    return path


def snapshot(path):
    return {
        file: file.read_bytes() if file.is_file() else None
        for file in [path, *path.rglob("*")]
        if file.name != ".lock"
    }


def newer_state(path):
    with opened_db(path) as opened:
        _, record = stored_state(opened)
    return _records.encode_chunk(b"\x02" + _records.decode_chunk(record)[1:] + b"more than this one knows")


# Files of other programs, and damage by a disk.


def without_current(path):
    (path / "work" / "CURRENT").unlink()
    (path / "work" / STATE_NAME).unlink()


def with_a_damaged_state(path):
    with opened_db(path / "work") as opened:
        key, record = stored_state(opened)
        opened.put(key, record[:-1] + bytes([record[-1] ^ 1]))
    (path / "work" / STATE_NAME).unlink()


def with_a_newer_state(path):
    record = newer_state(path / "work")
    with opened_db(path / "work") as opened:
        opened.put(stored_state(opened)[0], record)
    (path / "work" / STATE_NAME).unlink()


def with_a_newer_state_file(path):
    record = _records.decode_chunk((path / "work" / STATE_NAME).read_bytes())
    newer = bytes([VERSION + 1]) + record[1:] + b"more than this one knows"
    (path / "work" / STATE_NAME).write_bytes(_records.encode_chunk(newer))


def with_a_newer_item(path):
    with opened_db(path / "work") as opened:
        record = b"\x03" + opened.get(_records.item_key(1))[5:]
        checksum = crc32c(record, 1 ^ (4 + len(record))).to_bytes(4, "big")
        opened.put(_records.item_key(1), checksum + record)


def with_another_leveldb(path):
    shutil.rmtree(path / "work")
    with opened_db(path / "work", create_if_missing=True) as opened:
        opened.put(b"mine", b"one")


def of_the_original(path):
    shutil.rmtree(path / "work")
    order = {"comparator": lambda a, b: (a > b) - (a < b), "comparator_name": b"queue::comparator"}
    with opened_db(path / "work", create_if_missing=True, **order) as opened:
        opened.put(bytes(9), b"one")


def of_siberite(path):
    shutil.rmtree(path / "work")
    with opened_db(path / "work", create_if_missing=True) as opened:
        opened.put((1).to_bytes(8, "big"), b"one")
    (path / "work" / "LOG").write_text("=============== Aug 12, 2015 (UTC) ===============\n")


def of_siberite_with_consumers(path):
    shutil.rmtree(path / "work")
    (path / "work" / "_.metadata").mkdir(parents=True)
    with opened_db(path / "work" / "work", create_if_missing=True):
        pass


def of_kestrel(path):
    shutil.rmtree(path / "work")
    (path / "work").write_bytes(b"\x00\x05\x00\x00\x00hello")
    (path / "work.1285793415123").write_bytes(b"")


def with_a_stray_file(path):
    (path / "notes.txt").write_text("buy milk")


def with_a_stray_directory(path):
    (path / "photos").mkdir()
    (path / "photos" / "cat.jpg").write_text("miaow")


def with_a_bad_status(path):
    (path / ".status").write_text("sideways")


def with_a_damaged_clock(path):
    (path / ".clock").write_bytes(b"sideways")


OF_OTHERS = {
    of_the_original: "original darner",
    of_siberite: "siberite",
    of_siberite_with_consumers: "siberite",
    of_kestrel: "Kestrel",
}
SPOILED = [
    without_current, with_a_damaged_state, with_a_newer_state, with_a_newer_state_file, with_another_leveldb,
    with_a_stray_file, with_a_stray_directory, with_a_bad_status, with_a_damaged_clock,
    *OF_OTHERS,
]  # fmt: skip


class TestDataDirectory:
    @pytest.mark.parametrize("spoil", SPOILED)
    def test_is_said_by_check_to_have_what_the_server_says_of_it(self, path, spoil):
        spoil(path)
        before = snapshot(path)
        checked = run_darner("check", path)
        assert snapshot(path) == before
        assert "Traceback" not in checked.stdout + checked.stderr
        said = said_at_start(path)
        assert said
        for _, texts in said:
            for text in texts:
                assert text.strip('"') in checked.stdout + checked.stderr
        assert checked.returncode == any(level == "error" for level, _ in said)
        assert "sound: ok, items=1 bytes=3\n" in checked.stdout

    @pytest.mark.parametrize(("spoil", "whose"), OF_OTHERS.items())
    def test_of_another_server_is_named_and_left_as_it_is(self, path, spoil, whose):
        spoil(path)
        before = snapshot(path)
        checked = run_darner("check", path)
        said = checked.stdout + checked.stderr
        assert whose in said
        assert "damaged" not in said
        assert "darner repair" not in said
        with pytest.raises(RepairError):
            repair(path, b"work")
        assert snapshot(path) == before
        with running(path) as server, contextlib.closing(server.connect()) as wire:
            assert wire.get(b"sound/peek") == b"one"
            assert wire.set(b"work", b"x").startswith(b"SERVER_ERROR ")
            server.stop()
        assert whose in server.log
        now = snapshot(path)
        of_work = {file for file in before if (path / "work") in (file, *file.parents)}
        assert {file: now.get(file) for file in of_work} == {file: before[file] for file in of_work}

    def test_that_no_server_can_use_is_said_to_be_so(self, path):
        shutil.rmtree(path / ".log")
        (path / ".log").write_text("")
        checked = run_darner("check", path)
        started = run_darner("-d", path, "-p", "0")
        assert (checked.returncode, started.returncode) == (1, 1)
        assert started.stderr.removeprefix("darner: ").strip() in checked.stdout
        assert ".log" in started.stderr
        assert "no directory" in started.stderr
        assert "[Errno" not in started.stderr
        assert "sound: ok" in checked.stdout

    def test_with_pipes_in_it_holds_up_nobody(self, path):
        for name in ("CURRENT", STATE_NAME):
            (path / "work" / name).unlink()
            os.mkfifo(path / "work" / name)
        (path / "work" / "blobs").mkdir(exist_ok=True)
        os.mkfifo(path / "work" / "blobs" / "5")
        assert run_darner("check", path).returncode == 1

    def test_has_queues_to_be_in_memory_that_lie_on_disk(self, path, tmp_path):
        config = tmp_path / "darner.toml"
        config.write_text(f'data = "{path}"\nport = 0\n[queues.work]\ndurable = false\n')
        checked = run_darner("--check-config", "-c", config)
        assert checked.returncode == 0
        line = 'level=warning event="queue is to be in memory, but lies on disk: it stays there" queue=work'
        assert line in checked.stderr
        with running(path, "-c", str(config)) as server:
            server.stop()
        assert line in server.log


class TestDeletedQueue:
    def test_whose_leveldb_had_nothing_yet_is_no_fault(self, tmp_path):
        data = Data(tmp_path / "data")
        data.push(b"work", b"one")
        data.broker.delete(b"work")
        data.end()
        with opened_db(data.path / "work", create_if_missing=True):
            pass
        assert [(report.where, report.problems) for report in check(data.path)] == [("work", [])]
        assert said_at_start(data.path) == []
        assert not (data.path / "work").exists()


class TestLeftovers:
    def test_are_warned_of_in_the_form_of_the_log(self, path):
        for name in (".damaged-work-1", ".repair-work", ".trash/1"):
            (path / name).mkdir(parents=True)
        (path / ".log" / "lost-3").write_text("")
        done = run_darner("check", path)
        assert (done.returncode, done.stdout) == (
            0,
            "sound: ok, items=1 bytes=3\nwork: ok, items=2 bytes=6\n",
        )
        lines = done.stderr.splitlines()
        assert all(re.match(r'timestamp=\S+ level=warning event=".+" .*action=', line) for line in lines)
        for name in (".damaged-work-1", ".repair-work", ".trash", ".log/lost-3"):
            assert sum(f"path={path / name}" in line for line in lines) == 1

    def test_of_damage_that_a_server_has_met_are_warned_of_and_no_fault(self, path):
        aside = path / "work" / "damaged"
        aside.mkdir()
        for name in ("7.record", "8.record", "8", "000005.ldb"):
            (aside / name).touch()
        done = run_darner("check", path, "work")
        assert (done.returncode, done.stdout) == (0, "work: ok, items=2 bytes=6\n")
        assert f"queue=work items=2 tables=1 path={aside} action=" in done.stderr

    def test_of_a_repair_that_was_cut_off_between_two_steps_are_an_error(self, path):
        (path / "work").rename(path / ".damaged-work-1")
        (path / ".repair-work" / "queue").mkdir(parents=True)
        done = run_darner("check", path)
        assert done.returncode == 1
        assert (
            f"work: a repair was cut off between two steps: move {path}/.damaged-work-1 back" in done.stdout
        )


class TestLog:
    def test_that_is_damaged_is_said_by_check_as_by_the_server(self, tmp_path):
        path = tmp_path / "data"
        data = Data(path)
        data.push(b"sound", b"one")
        data.push(b"work", *(b"%06d" % number + bytes(500) for number in range(500)))
        data.end()
        (segment,) = (path / ".log").glob("[0-9]*")
        content = bytearray(segment.read_bytes())
        content[content.index(b"000200")] ^= 1
        segment.write_bytes(content)
        checked = run_darner("check", path)
        (line,) = [line for line in checked.stdout.splitlines() if line.startswith("log: ")]
        assert checked.returncode == 1
        said = said_at_start(path)
        assert ("error", [f'"{line.removeprefix("log: ")}"']) in said


class TestNewerFormat:
    """A newer format is no damage: it has an error of its own, and repair refuses it."""

    @pytest.mark.parametrize("spoil", [with_a_newer_state, with_a_newer_state_file, with_a_newer_item])
    def test_of_a_queue_is_said_and_left_as_it_is(self, path, spoil):
        spoil(path)
        before = snapshot(path / "work")
        checked = run_darner("check", path)
        assert checked.returncode == 1
        (line,) = [line for line in checked.stdout.splitlines() if line.startswith("work: ")]
        assert NEWER in line
        assert "damaged" not in line
        assert "darner repair" not in checked.stderr
        for work in (lambda: repair(path, b"work"), lambda: self.repair_all(path)):
            with pytest.raises(RepairError, match=NEWER):
                work()
        assert snapshot(path / "work") == before
        with running(path) as server, contextlib.closing(server.connect()) as wire:
            assert NEWER.encode() in wire.ask(b"get work\r\n")
            assert wire.get(b"sound") == b"one"
            server.stop()
        (line,) = [line for line in server.log.splitlines() if "queue=work" in line]
        assert f'action="{NEWER} that wrote it"' in line

    def repair_all(self, path):
        outcomes = dict(repair_all(path))
        assert outcomes[b"sound"].damaged is None
        raise outcomes[b"work"]

    def test_of_the_log_keeps_the_server_from_starting_and_repairs_from_beginning(self, path):
        (path / ".log" / "9").write_bytes(b"darner 9" + bytes(5000))
        before = snapshot(path)
        started, checked = run_darner("-d", path, "-p", "0"), run_darner("check", path)
        repaired = run_darner("repair", path, "--all")
        assert (started.returncode, checked.returncode, repaired.returncode) == (1, 1, 1)
        said = started.stderr.removeprefix("darner: ").strip()
        assert "newer" in said
        assert f"log: {said}" in checked.stdout
        assert said in repaired.stderr
        assert snapshot(path) == before

    def test_of_how_the_clock_stands_keeps_the_server_from_starting(self, path):
        (path / ".clock").write_bytes(_records.encode_ids([2, 3]))
        before = snapshot(path)
        started, checked = run_darner("-d", path, "-p", "0"), run_darner("check", path)
        assert (started.returncode, checked.returncode) == (1, 1)
        said = started.stderr.removeprefix("darner: ").strip()
        assert "newer" in said
        assert f"clock: {said}" in checked.stdout
        assert snapshot(path) == before


class TestRepairAll:
    @pytest.fixture
    def third(self, path):
        data = Data(path)
        data.push(b"third", b"three")
        data.restart()
        data.close()
        (path / "third" / "CURRENT").unlink()

    def test_repairs_each_that_needs_it_and_says_of_each_what_was_done(self, path, third):
        (path / "work" / "CURRENT").unlink()
        done = run_darner("repair", path, "--all")
        assert done.returncode == 0
        assert "sound: ok, nothing to repair, items=1 bytes=3\n" in done.stdout
        for name, figures in (("work", "items=2 bytes=6"), ("third", "items=1 bytes=5")):
            assert f"{name}: repaired, {figures}\n" in done.stdout
            assert f"{name}: the damaged directory is {path}/.damaged-{name}-1;" in done.stdout
        assert all(not report.problems for report in check(path))

    def test_is_not_kept_from_the_others_by_one_that_cannot_be_repaired(self, path, third):
        (path / "third").rename(path / "zebra")
        of_the_original(path)
        done = run_darner("repair", path, "--all")
        assert done.returncode == 1
        assert "work: cannot repair" in done.stderr
        assert "zebra: repaired, items=1 bytes=5\n" in done.stdout

    def test_is_not_kept_from_the_others_by_what_nobody_has_provided_for(self, path, third, monkeypatch):
        (path / "work" / "CURRENT").unlink()
        run_one = Rebuild.run
        monkeypatch.setattr(Rebuild, "run", lambda it: run_one(it) if it._name == b"third" else 1 // 0)
        outcomes = dict(repair_all(path))
        assert "ZeroDivisionError" in str(outcomes[b"work"])
        assert outcomes[b"third"].items == 1
        examine = darner.repair.check.examine
        monkeypatch.setattr(
            darner.repair.check,
            "examine",
            lambda name, *rest: 1 // 0 if name == b"third" else examine(name, *rest),
        )
        reports = {report.where: " ".join(report.problems) for report in check(path)}
        assert "ZeroDivisionError" in reports["third"]
        assert reports["sound"] == ""

    @pytest.mark.parametrize("args", [(), ("work", "--all")])
    def test_or_one_queue_must_be_asked_for(self, path, args):
        done = run_darner("repair", path, *args)
        assert done.returncode == 2
        assert "--all" in done.stderr


class TestBytesThatAreNoText:
    def test_of_a_name_are_said_as_in_the_log(self, tmp_path):
        path = tmp_path / "data"
        data = Data(path)
        data.push(b"\xff\x9b", b"one")
        data.restart()
        data.close()
        (path / names.directory_of(b"\xff\x9b") / "CURRENT").unlink()
        assert "%FF%9B: " in run_darner("check", path).stdout
        done = run_darner("repair", path, os.fsdecode(b"\xff\x9b"))
        assert done.returncode == 0
        assert "%FF%9B: repaired, items=1 bytes=3\n" in done.stdout

    @pytest.mark.parametrize("args", [["check"], ["repair", "--all"], ["--check-config", "-c"]])
    def test_of_a_path_end_in_no_traceback(self, tmp_path, args):
        done = run_darner(*args, f"{tmp_path}/gr\udcf6\udcdfe")
        assert done.returncode == 1
        assert "Traceback" not in done.stderr


class TestAdvice:
    """One advice that fits, and never a second one that contradicts it."""

    def test_of_a_damaged_queue_does_not_say_that_it_is_tried_again(self, path):
        (log,) = (path / "work").glob("*.log")
        os.truncate(log, 5)
        with running(path) as server, contextlib.closing(server.connect()) as wire:
            assert b"darner repair" in wire.ask(b"get work\r\n")
            server.stop()
        lines = [line for line in server.log.splitlines() if "queue=work" in line]
        assert lines
        for line in lines:
            assert line.count("darner repair") == 1
            assert "by itself" not in line

    def test_of_a_directory_that_may_not_be_used_is_no_repair(self, path, monkeypatch):
        """Root may use every file, so `os.access` is replaced."""
        look = os.access
        monkeypatch.setattr(os, "access", lambda file, mode: file != path / "work" and look(file, mode))
        reports = {report.where: report for report in check(path)}
        assert reports["work"].problems == [f"cannot use {path}/work: Permission denied"]
        assert not reports["work"].is_repairable
        assert reports["sound"].problems == []
