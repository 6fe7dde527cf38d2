"""`darner migrate`, from the command line to a server that serves what was brought over."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import time

import pytest
from other_servers import OriginalWriter, addx, remove_xid, write_original, write_siberite
from running import DARNER, refused, run_darner, running, running_well, until

from darner.migrate import in_use
from darner.migrate.target import Target

LARGE = b"0123456789abcdef" * 10_000
ITEMS = [b"one", b"", b"three\0", LARGE, b"five" * 500, b"x" * 65_536, b"x" * 65_537]


def an_original(path):
    write_original(path / "work", *ITEMS)
    write_original(path / "a:b%20", b"other")


def a_kestrel(path):
    path.mkdir()
    (path / "work").write_bytes(b"".join(map(addx, ITEMS)) + remove_xid(1))
    (path / "a:b%20").write_bytes(addx(b"other"))


def a_siberite(path):
    write_siberite(path / "work", *ITEMS)
    write_siberite(path / "a:b%20", b"other")


SOURCES = {"darner": an_original, "kestrel": a_kestrel, "siberite": a_siberite}
each_program = pytest.mark.parametrize("program", SOURCES)


def snapshot(path):
    return {
        file: (file.stat().st_mtime_ns, file.read_bytes() if file.is_file() else None)
        for file in [path, *path.rglob("*")]
    }


def migrate(program, *words, **options):
    return run_darner("migrate", "--from", program, *words, **options)


def text_of(done, code=0):
    """Return what a command said; it must have ended with this status, and without a traceback."""
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert done.returncode == code, said
    return said


@pytest.fixture
def src(tmp_path):
    return tmp_path / "src"


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


@each_program
def test_brings_all_items_over_in_order_and_leaves_the_source_as_it_was(program, src, data):
    SOURCES[program](src)
    before = snapshot(src)
    size = sum(map(len, ITEMS))
    looked = text_of(migrate(program, src, "--dry-run"))
    assert f"work: 7 items, {size} bytes\n" in looked
    assert f"has 2 queues, 8 items, {size + 5} bytes\n" in looked
    assert not data.exists()
    said = text_of(migrate(program, src, "--to", data))
    assert said == f"{data} is checked, and has from {src}: 2 queues, 8 items, {size + 5} bytes\n"
    assert snapshot(src) == before
    assert "work: ok, items=7" in text_of(run_darner("check", data))
    with running_well(data) as server, contextlib.closing(server.connect()) as wire:
        assert wire.take_all(b"work") == ITEMS
        assert wire.take_all(b"a:b%20") == [b"other"]


@each_program
def test_that_is_done_is_not_done_again(program, src, data):
    SOURCES[program](src)
    text_of(migrate(program, src, "--to", data))
    with running(data) as server, contextlib.closing(server.connect()) as wire:
        assert wire.get(b"work") == b"one"
        server.stop()
    assert f"{data} has it all already" in text_of(migrate(program, src, "--to", data))
    with running(data) as server, contextlib.closing(server.connect()) as wire:
        assert wire.get(b"work/peek") == b""
    SOURCES["siberite"](src.with_name("other"))
    assert "give another directory" in text_of(migrate("siberite", src.with_name("other"), "--to", data), 1)
    (src / "more").write_text("")
    assert "has changed" in text_of(migrate(program, src, "--to", data), 1)


def test_keeps_times_and_leaves_out_what_has_expired(src, data):
    now_ms = int(time.time() * 1000)
    src.mkdir()
    (src / "work").write_bytes(
        addx(b"gone", now_ms - 9_000_000, now_ms - 1)
        + addx(b"kept", now_ms - 60_000, now_ms + 3_600_000)
        + addx(b"from the future", now_ms + 10_000_000)
    )
    assert "work: 2 items, 19 bytes; 1 more have expired" in text_of(migrate("kestrel", src, "--dry-run"))
    text_of(migrate("kestrel", src, "--to", data))
    with Target(data) as target:
        kept, other = target.items(target.queue(b"work"))
        assert kept == (b"kept", now_ms + 3_600_000, now_ms - 60_000)
        assert other.expires_ms == 0
        assert now_ms <= other.enqueued_ms < now_ms + 600_000
    with running(data) as server, contextlib.closing(server.connect()) as wire:
        assert wire.take_all(b"work") == [b"kept", b"from the future"]


def test_brings_cursors_and_children_over(src, data):
    write_siberite(
        src / "work", b"5", b"6", b"7", b"8", first=5, cursors={b"bill": 7},
        failed={b"bill": [b"6", b"4"]},
    )  # fmt: skip
    looked = text_of(migrate("siberite", src, "--dry-run"))
    assert "work: the cursor bill has read 3 of its items, and is to read 1 of these again\n" in looked
    assert "work.bill: 1 items, 1 bytes\n" in looked
    text_of(migrate("siberite", src, "--to", data))
    with running_well(data) as server, contextlib.closing(server.connect()) as wire:
        assert wire.take_all(b"work/cursor=bill") == [b"6", b"8"]
        assert wire.take_all(b"work/cursor=new") == [b"5", b"6", b"7", b"8"]
        assert wire.take_all(b"work") == [b"5", b"6", b"7", b"8"]
        assert wire.take_all(b"work.bill") == [b"4"]
    fanout = src.with_name("fanout")
    fanout.mkdir()
    for name in ("work", "work+audit"):
        (fanout / name).write_bytes(addx(name.encode()))
    text_of(migrate("kestrel", fanout, "--to", data.with_name("data2")))
    with running_well(data.with_name("data2")) as server, contextlib.closing(server.connect()) as wire:
        assert wire.set(b"work", b"more") == b"STORED\r\n"
        assert wire.take_all(b"work+audit") == [b"work+audit", b"more"]
        assert wire.take_all(b"work") == [b"work", b"more"]


def test_says_what_it_found_and_did_as_json(src, data):
    a_kestrel(src)
    (src / "photos").mkdir()
    looked = json.loads(migrate("kestrel", src, "--dry-run", "--json").stdout)
    assert looked["strays"] == [f"{src}/photos is no journal"]
    work = looked["queues"][1]
    assert (work["name"], work["items"], work["damage"], work["refusal"]) == ("work", 7, [], "")
    done = json.loads(migrate("kestrel", src, "--to", data, "--json").stdout)
    assert done["queues"][1]["checksum"] == work["checksum"]


class TestRefuses:
    def test_a_command_line_that_says_not_where_to(self, src):
        assert "give --to DATA, or --dry-run" in text_of(migrate("kestrel", src), 2)

    def test_a_source_that_is_none(self, src, data):
        assert f"{src} is no directory" in text_of(migrate("kestrel", src, "--to", data), 1)
        src.mkdir()
        assert "has no queues of Kestrel" in text_of(migrate("kestrel", src, "--to", data), 1)
        an_original(src)
        assert "has no queues of Kestrel" in text_of(migrate("kestrel", src, "--to", data), 1)
        assert not data.exists()

    def test_the_data_of_another_program(self, src, data):
        an_original(src)
        said = text_of(migrate("siberite", src, "--to", data), 1)
        assert "nothing was brought over" in said
        assert not data.exists()

    def test_a_place_that_is_taken(self, src, data):
        a_kestrel(src)
        (data / "work").mkdir(parents=True)
        assert "is not empty" in text_of(migrate("kestrel", src, "--to", data), 1)
        assert "must not lie in each other" in text_of(migrate("kestrel", src, "--to", src / "new"), 1)
        assert "must not lie in each other" in text_of(migrate("kestrel", src, "--to", src.parent), 1)

    def test_a_place_that_a_server_has(self, src, data):
        a_kestrel(src)
        with running(data):
            assert "in use by another darner" in text_of(migrate("kestrel", src, "--to", data), 1)

    def test_a_source_that_is_in_use(self, src, data):
        a_kestrel(src)
        with (src / "work").open("rb"):
            said = text_of(migrate("kestrel", src, "--to", data), 1)
            assert f"process {os.getpid()} has {src} in use: stop that server first" in said
            assert "warning" in text_of(migrate("kestrel", src, "--dry-run"))
        assert not data.exists()

    @pytest.mark.parametrize("lock", [fcntl.flock, fcntl.lockf])
    def test_a_leveldb_that_is_locked_whoever_has_it_open(self, src, lock):
        an_original(src)
        assert not in_use._is_locked(src)
        with (src / "work" / "LOCK").open("w") as file:
            lock(file, fcntl.LOCK_EX)
            assert in_use._is_locked(src)

    def test_a_queue_whose_name_is_none(self, src, data):
        write_original(src / "work", b"one")
        write_original(src / "to do", b"one")
        looked = text_of(migrate("darner", src, "--dry-run"), 1)
        assert "to%20do: cannot come over: no queue of this darner can have its name" in looked
        assert "nothing was brought over" in text_of(migrate("darner", src, "--to", data), 1)
        assert not data.exists()
        assert "1 queues" in text_of(migrate("darner", src, "--to", data, "--skip", "to do"))
        assert "has no queue none" in text_of(migrate("darner", src, "--dry-run", "--skip", "none"), 1)


def test_brings_what_is_sound_of_damaged_queues_over_if_asked_to(src, data):
    with OriginalWriter(src.parent / "work") as queue:
        queue.set(b"one")
        queue.put(b"damaged\1\0")
        queue.set(b"three")
    src.mkdir()
    queue.directory.rename(src / "work")
    assert "work: damaged: " in text_of(migrate("darner", src, "--dry-run"), 1)
    said = text_of(migrate("darner", src, "--to", data), 1)
    assert "item 1 is damaged" in said
    assert "nothing was brought over" in said
    assert not data.exists()
    assert "2 items" in text_of(migrate("darner", src, "--to", data, "--skip-damaged"))
    with running(data) as server, contextlib.closing(server.connect()) as wire:
        assert wire.take_all(b"work") == [b"one", b"three"]


# A migration that is cut off


@pytest.fixture
def deep(src):
    """A source that takes a while."""
    src.mkdir()
    for name in ("first", "second"):
        with (src / name).open("wb") as file:
            for number in range(20_000):
                file.write(addx(b"%d" % number + LARGE[: 70_000 * (number % 400 == 0)]))
    return src


def is_under_way(data):
    return (data / ".migrating").exists() and (data / "second").exists()


def test_that_was_killed_goes_on_and_no_server_starts_meanwhile(deep, data):
    words = [DARNER, "migrate", "--from", "kestrel", str(deep), "--to", str(data)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        until(lambda: is_under_way(data))
        process.kill()
        assert process.stdout.read() == b""
    said = refused("--data", data)
    assert f"a migration to {data} is not over" in said
    assert "other options" in text_of(migrate("kestrel", deep, "--to", data, "--skip", "first"), 1)
    assert "going on with what was begun" in text_of(migrate("kestrel", deep, "--to", data))
    with running_well(data) as server, contextlib.closing(server.connect()) as wire:
        for name in (b"first", b"second"):
            found = wire.take_all(name)
            assert len(found) == 20_000
            assert all(item.startswith(b"%d" % number) for number, item in enumerate(found))


def test_that_a_signal_ends_says_so_and_goes_on(deep, data):
    words = [DARNER, "migrate", "--from", "kestrel", str(deep), "--to", str(data)]
    with subprocess.Popen(words, stderr=subprocess.PIPE) as process:
        until(lambda: is_under_way(data))
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b"darner: interrupted: the same command goes on\n"
    assert process.returncode == 130
    assert "40000 items" in text_of(migrate("kestrel", deep, "--to", data))


def test_whose_source_changes_is_refused(deep, data):
    words = [DARNER, "migrate", "--from", "kestrel", str(deep), "--to", str(data)]
    with subprocess.Popen(words) as process:
        until(lambda: is_under_way(data))
        process.kill()
    with (deep / "first").open("ab") as file:
        file.write(addx(b"more"))
    assert "has changed since the migration" in text_of(migrate("kestrel", deep, "--to", data), 1)


# A server that is started on such a directory


@each_program
def test_a_server_started_on_the_source_names_the_command_and_changes_nothing(program, src):
    SOURCES[program](src)
    before = snapshot(src)
    said = refused("--data", src)
    assert f"darner migrate --from {program} {src} --to DATA" in said
    assert snapshot(src) == before
    assert f"darner migrate --from {program} {src} --to DATA" in text_of(run_darner("check", src), 1)
    assert snapshot(src) == before


@each_program
def test_a_server_that_finds_such_a_queue_among_its_own_names_the_command(program, src, data):
    SOURCES[program](src)
    with running(data) as server, contextlib.closing(server.connect()) as wire:
        wire.set(b"mine", b"one")
        server.stop()
    (src / "work").rename(data / "work")
    with running(data) as server, contextlib.closing(server.connect()) as wire:
        assert wire.get(b"mine") == b"one"
        server.stop()
    assert f"darner migrate --from {program} brings over" in server.log
