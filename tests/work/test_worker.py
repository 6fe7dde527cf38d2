"""Real workers and real servers: what is done, what is tried again, and what the end of a process leaves."""

import contextlib
import re
import signal
import time
import urllib.request

import pytest
from logins import HASH
from running import configured, running, until
from workers import working

FORMS = [("threads", ""), ("processes", ""), ("asyncio", "_async")]


@pytest.fixture
def server(tmp_path):
    """A server whose connections may hold several items, and on which an item is tried three times."""
    text = '[queue_defaults]\nmax_open_reads = 100\nmax_attempts = 3\ndead_letter_queue = "dead"\n'
    with configured(tmp_path, text) as server:
        yield server


@pytest.fixture
def worker(tmp_path, server):
    """Return what starts a worker on the queue `work` of the server."""
    with contextlib.ExitStack() as stack:

        def start(function, *options, queue="work", **names):
            words = [f"--server=127.0.0.1:{server.port}", f"--queue={queue}", *options]
            return stack.enter_context(working(tmp_path, function, *words, **names))

        yield start


def put(wire, *values, queue=b"work"):
    for value in values:
        assert wire.set(queue, value) == b"STORED\r\n"


def test_items_are_done_and_removed_once_they_are(server, wire, worker):
    put(wire, *(b"%d" % number for number in range(50)))
    it = worker("echo", "--concurrency=1")
    assert it.said(50) == [str(number) for number in range(50)]
    assert it.stop() == 0
    assert server.stat("curr_items") == 0
    assert wire.get(b"work") is None


@pytest.mark.parametrize(("pool", "form"), FORMS)
def test_as_many_jobs_run_at_a_time_as_the_concurrency_says(wire, worker, pool, form):
    put(wire, b"a", b"b", b"c")
    it = worker(f"meet{form}", f"--pool={pool}", "--concurrency=3")
    assert sorted(it.said(3)) == ["a", "b", "c"]
    assert it.stop() == 0
    assert wire.get(b"work") is None


def test_a_busy_worker_has_one_connection_for_jobs_and_one_that_waits(server, wire, worker):
    put(wire, *(b"%d" % number for number in range(8)))
    it = worker("hold", "--concurrency=10")
    it.said(8)
    until(lambda: server.waiters(b"work") == 1)
    until(lambda: wire.stats()["curr_connections"] == "3")
    put(wire, b"comes at once")
    assert it.said(1) == ["began comes at once 0"]


def test_with_a_max_open_reads_of_1_each_item_in_progress_has_a_connection(tmp_path):
    with running(tmp_path / "data") as server, contextlib.closing(server.connect()) as wire:
        put(wire, b"a", b"b", b"c")
        words = (f"--server=127.0.0.1:{server.port}", "--queue=work", "--concurrency=3")
        with working(tmp_path, "meet", *words) as it:
            assert sorted(it.said(3)) == ["a", "b", "c"]
            assert it.stop() == 0
        assert wire.get(b"work") is None


def test_the_queue_that_is_named_first_goes_first(wire, worker):
    put(wire, b"n1", b"n2", queue=b"normal")
    put(wire, b"u1", b"u2", queue=b"urgent")
    it = worker("echo", "--queue=normal", "--concurrency=1", queue="urgent")
    assert it.said(4) == ["u1", "u2", "n1", "n2"]


def test_an_item_that_fails_comes_after_longer_and_longer_pauses_and_ends_in_the_dead_letter_queue(
    wire, worker
):
    put(wire, b"bad")
    it = worker("fail", "--first-pause=100ms")
    assert it.said(3) == ["tried 0", "tried 1", "tried 2"]
    assert wire.get(b"dead/t=5000") == b"bad"
    pauses = list(map(float, re.findall(r"retry_in_s=(\S+)", it.log)))
    assert [0.05 <= pauses[0] <= 0.1, 0.1 <= pauses[1] <= 0.2, 0.2 <= pauses[2] <= 0.4] == [True] * 3
    assert "ValueError: that is nothing" in it.log
    assert 'event="the job failed" queue=work id=1 attempts=0' in it.log
    assert it.stop() == 0


@pytest.mark.parametrize("pool", ["threads", "processes"])
def test_a_job_that_raises_ends_nothing_else(wire, worker, pool):
    put(wire, b"bad", b"good")
    it = worker("fail_bad", f"--pool={pool}", "--concurrency=1", "--first-pause=10s")
    assert it.said(1) == ["good"]
    assert "SystemExit: that is nothing" in it.log
    assert it.stop() == 0


def test_a_job_may_ask_to_be_tried_again_without_a_traceback(wire, worker):
    put(wire, b"x")
    it = worker("retry")
    assert it.said(2) == ["tried 0", "tried 1"]
    assert it.stop() == 0
    assert 'event="to be retried" queue=work id=1 attempts=0 retry_in_s=0.05' in it.log
    assert "Traceback" not in it.log
    assert wire.get(b"work") is None


@pytest.mark.parametrize(("pool", "form"), FORMS)
def test_a_worker_that_is_told_to_end_finishes_what_it_has_and_takes_nothing_more(
    tmp_path, wire, worker, pool, form
):
    put(wire, b"a", b"b", b"c", b"d")
    it = worker(f"hold{form}", f"--pool={pool}", "--concurrency=2")
    assert sorted(it.said(2)) == ["began a 0", "began b 0"]
    it.process.send_signal(signal.SIGTERM)
    it.wait_for_log("nothing more is taken")
    if pool == "processes":
        until(lambda: it.log.count("nothing more is taken") == 2)
    (tmp_path / "go").touch()
    assert sorted(it.said(2)) == ["ended a", "ended b"]
    assert it.ended() == 0
    assert wire.take_all(b"work") == [b"c", b"d"]


@pytest.mark.parametrize(("pool", "form"), FORMS)
@pytest.mark.alone
def test_what_is_not_finished_within_the_grace_goes_back(wire, worker, pool, form):
    put(wire, b"x")
    it = worker(f"hold{form}", f"--pool={pool}", "--grace=200ms")
    it.said(1)
    began = time.monotonic()
    assert it.stop() == 1
    assert time.monotonic() - began < 3
    assert "not finished in time: it goes back" in it.log
    assert wire.get(b"work/t=5000") == b"x"


def test_a_second_signal_ends_the_worker_at_once(wire, worker):
    put(wire, b"x")
    it = worker("hold")
    it.said(1)
    it.process.send_signal(signal.SIGINT)
    it.wait_for_log("nothing more is taken")
    assert it.stop() == 1
    assert wire.get(b"work/t=5000") == b"x"


def test_a_signal_is_heeded_also_if_the_system_delivers_it_to_the_thread_of_a_job(tmp_path, wire, worker):
    put(wire, b"x")
    it = worker("get_signal", "--concurrency=1")  # so that nothing else wakes the main thread
    assert it.said(1) == ["began x 0"]
    (tmp_path / "go").touch()
    it.wait_for_log("nothing more is taken")
    (tmp_path / "signalled").touch()
    assert it.ended() == 0


@pytest.mark.alone
def test_an_idle_worker_ends_at_once(server, worker):
    it = worker("echo")
    until(lambda: server.waiters(b"work") == 1)
    began = time.monotonic()
    assert it.stop() == 0
    assert time.monotonic() - began < 2


def test_a_worker_may_end_after_so_many_items(wire, worker):
    put(wire, b"a", b"b", b"c")
    it = worker("echo", "--max-jobs=2", "--concurrency=1")
    assert it.said(2) == ["a", "b"]
    assert it.ended() == 0
    assert wire.take_all(b"work") == [b"c"]


@pytest.mark.parametrize("pool", ["threads", "processes"])
@pytest.mark.alone
def test_the_items_of_a_worker_that_is_killed_go_to_the_next_one_at_once(server, wire, worker, pool):
    put(wire, b"a", b"b", b"c")
    first = worker("hold", f"--pool={pool}", "--concurrency=3", name="first")
    first.said(3)
    second = worker("hold", f"--pool={pool}", "--concurrency=3", name="second")
    until(lambda: server.waiters(b"work") >= 1)
    if pool == "processes":
        until(lambda: server.waiters(b"work") == 3)
    began = time.monotonic()
    first.kill()
    assert sorted(second.said(3)) == ["began a 1", "began b 1", "began c 1"]
    assert time.monotonic() - began < 1  # and there is no open_timeout at all


def test_a_process_that_dies_has_its_place_taken_and_its_item_is_done_again(wire, worker):
    put(wire, b"a", b"b")
    it = worker("die", "--pool=processes", "--concurrency=1")
    assert it.said(2) == ["a", "b"]
    assert "ended by SIGKILL" in it.log
    assert it.stop() == 0


def test_no_process_outlives_the_worker(wire, worker):
    put(wire, b"a", b"b")
    it = worker("hold", "--pool=processes", "--concurrency=2")
    it.said(2)
    children = it.children()
    assert len(children) == 2
    it.kill()
    until(lambda: not any(is_running(child) for child in children))


def is_running(process):
    try:
        with open(f"/proc/{process}/stat") as stat:  # noqa: PTH123
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_worker_comes_back_to_a_server_that_was_killed(tmp_path):
    options = ("--socket", str(tmp_path / "darner.sock"))
    with running(tmp_path / "data", *options) as server:
        with contextlib.closing(server.connect()) as wire:
            put(wire, b"x")
        words = (f"--server=darner+unix://{tmp_path / 'darner.sock'}", "--queue=work")
        with working(tmp_path, "hold", *words) as it:
            assert it.said(1) == ["began x 0"]
            server.kill()
            it.wait_for_log("the server does not serve")
            server.start()
            assert it.said(1)[0].startswith("began x")  # at least once: the first time has not ended yet
            it.wait_for_log("the server serves again")
            (tmp_path / "go").touch()
            assert it.said(2) == ["ended x", "ended x"]
            it.wait_for_log("the item went back: it will be done again")
            assert it.stop() == 0
        with contextlib.closing(server.connect()) as wire:
            assert wire.get(b"work") is None


def test_a_job_that_takes_longer_than_open_timeout_is_done_again_and_that_is_logged(tmp_path):
    with (
        configured(tmp_path, "[queue_defaults]\nmax_open_reads = 10\nopen_timeout = '200ms'\n") as server,
        contextlib.closing(server.connect()) as wire,
    ):
        put(wire, b"x")
        words = (f"--server=127.0.0.1:{server.port}", "--queue=work", "--concurrency=2")
        with working(tmp_path, "hold", *words) as it:
            assert it.said(2) == ["began x 0", "began x 1"]
            (tmp_path / "go").touch()
            it.wait_for_log("the item went back: it will be done again")
            until(lambda: wire.get(b"work/peek") is None and is_idle(wire))
            assert it.stop() == 0


def is_idle(wire):
    return wire.stats()["queue_work_open_transactions"] == "0"


def test_of_several_servers_one_may_be_down(tmp_path, server, wire):
    down = tmp_path / "down.sock"
    words = (f"--server=127.0.0.1:{server.port}", f"--server=darner+unix://{down}", "--queue=work")
    with working(tmp_path, "echo", *words) as it:
        put(wire, b"a")
        assert it.said(1) == ["a"]
        it.wait_for_log("the server does not serve")
        with running(tmp_path / "other", "--socket", str(down)) as other:
            with contextlib.closing(other.connect()) as to_other:
                put(to_other, b"b")
            assert it.said(1) == ["b"]
            put(wire, b"c")
            assert it.said(1) == ["c"]
            assert it.stop() == 0


@pytest.mark.parametrize(
    ("function", "words", "status", "error"),
    [
        ("no_such_job", (), 1, "darner work: jobs has no no_such_job"),
        ("number", (), 1, "darner work: jobs:number is an int, and cannot be called"),
        (
            "echo_async",
            (),
            1,
            "darner work: jobs:echo_async is async: it needs the pool asyncio, not threads",
        ),
        ("echo", ("--queue=a b",), 1, "darner work: 'a b' is not the name of a queue"),
        ("echo", ("--server=ftp://x",), 1, "darner work: 'ftp://x' is not the address of a server"),
        (
            "echo",
            ("--metrics-host=192.0.2.1", "--metrics-port=0"),
            1,
            "darner work: metrics cannot be served on",
        ),
        ("echo", ("--concurrency=0",), 2, "Invalid value for '-c' / '--concurrency'"),
        ("echo", ("--grace=10",), 2, "'10' is no time, such as 500ms, 30s, 5m or 1h"),
        ("echo", ("--pool=fibres",), 2, "'fibres' is not one of"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(worker, function, words, status, error):
    it = worker(function, *words)
    assert it.ended() == status
    assert error in it.log
    assert "Traceback" not in it.log


def test_a_user_who_may_not_log_in_is_told_so(tmp_path):
    (tmp_path / "users.toml").write_text(f'[alice]\npassword = "{HASH}"\nread = ["*"]\n')
    with configured(tmp_path, f'auth_file = "{tmp_path}/users.toml"\n') as server:
        address = f"127.0.0.1:{server.port}"
        for pool in ("threads", "processes"):
            words = (f"--server=darner://alice:wrong@{address}", "--queue=work", f"--pool={pool}")
            with working(tmp_path, "echo", *words) as it:
                assert it.ended() == 1
                assert f"darner work: {address}: user or password is wrong" in it.log
                assert "Traceback" not in it.log
        with working(
            tmp_path, "echo", f"--server=darner://alice:pass%20word@{address}", "--queue=work"
        ) as it:
            it.wait_for_log("event=connected")
            assert it.stop() == 0


def test_what_the_queue_lacks_for_a_worker_is_said_once(tmp_path):
    with (
        running(tmp_path / "data") as server,
        working(tmp_path, "echo", f"--server=127.0.0.1:{server.port}", "--queue=work") as it,
    ):
        it.wait_for_log("an item that fails is tried for ever: set max_attempts")
        assert it.stop() == 0
        assert it.log.count("is tried for ever") == 1


@pytest.mark.parametrize("pool", ["threads", "processes"])
def test_prometheus_reads_how_jobs_have_ended(wire, worker, pool):
    put(wire, b"bad", b"good", b"good")
    it = worker("fail_bad", "--metrics-port=0", f"--pool={pool}", "--concurrency=2", "--first-pause=10s")
    assert it.said(2) == ["good", "good"]
    port = re.search(r"event=metrics host=127.0.0.1 port=(\d+)", it.log)[1]

    def figures():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
            return reply.read().decode().splitlines()

    until(lambda: 'darner_worker_jobs_total{outcome="handled",queue="work"} 2.0' in figures())
    until(lambda: 'darner_worker_jobs_total{outcome="failed",queue="work"} 1.0' in figures())
    assert 'darner_worker_jobs_in_progress{queue="work"} 0.0' in figures()
    assert 'darner_worker_job_seconds_count{queue="work"} 3.0' in figures()
    assert it.stop() == 0
