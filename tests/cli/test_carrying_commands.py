"""The commands that carry items, as a shell runs them."""

import json
import os
import pty
import signal
import subprocess

import pytest
from running import DARNER, configured, run_darner, until


@pytest.fixture
def darner(standing):
    """Run a command against the standing server; it must end with this status, and without a traceback."""

    def run(*words, status=0, **options):
        done = run_darner(*words, DARNER_URL=f"127.0.0.1:{standing.port}", **options)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


@pytest.fixture
def environment(standing):
    return os.environ | {"DARNER_URL": f"127.0.0.1:{standing.port}"}


def test_lines_go_in_and_come_out(darner):
    darner("put", "lines", input="one\n\nthree\nno end")
    assert darner("get", "lines", "-n", "3").stdout == "one\n\nthree\n"
    found = json.loads(darner("get", "lines", "--json").stdout)
    assert found == {"id": 4, "attempts": 0, "flags": 0, "data": "no end"}
    assert darner("get", "lines", status=4).stdout == ""


def test_items_that_end_with_a_nul_or_are_all_of_standard_input_go_in_and_come_out(darner):
    darner("put", "-0", "nuls", input="a\nb\0c\0")
    darner("put", "--whole", "nuls", input="all\nof\0it\n")
    darner("put", "nuls", "one")
    assert darner("get", "--all", "--open", "-0", "nuls").stdout == "a\nb\0c\0all\nof\0it\n\0one\0"


def test_an_item_whose_output_nobody_reads_stays_in_the_queue(darner, client, environment):
    darner("put", "unread", input="".join(f"{number}\n" for number in range(50_000)))
    get = subprocess.Popen(
        [DARNER, "get", "--open", "--all", "unread"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert get.stdout.readline() == b"0\n"
    get.stdout.close()
    assert get.stderr.read() == b""
    assert get.wait(timeout=60) == 1
    until(lambda: client.stats()["queue_unread_open_transactions"] == "0")
    left = client.take_all(b"unread")
    assert left == [b"%d" % number for number in range(50_000 - len(left), 50_000)]
    assert len(left) > 0


def test_a_terminal_gets_no_control_characters(darner, client, environment):
    client.set(b"shown", b"\x1b[31mred\xff\nline")
    screen, terminal = pty.openpty()
    subprocess.run([DARNER, "get", "shown"], env=environment, stdout=terminal, timeout=60, check=True)
    os.close(terminal)
    assert os.read(screen, 1000) == b"\\x1b[31mred\\xff\r\nline\r\n"
    os.close(screen)


def test_dead_letters_go_back_to_their_queue(darner, client):
    for number in range(5):
        client.set(b"orders.failed", b"%d" % number)
    done = darner("move", "orders.failed", "orders", "--dry-run")
    assert done.stdout == "would move 5 items, 5 bytes\n"
    assert darner("move", "orders.failed", "orders", "-n", "2").stdout == "moved 2 items, 2 bytes\n"
    found = json.loads(darner("move", "orders.failed", "orders", "--json").stdout)
    assert (found["items"], found["unsettled"], found["doubled"]) == (3, 0, [])
    assert client.take_all(b"orders") == [b"0", b"1", b"2", b"3", b"4"]


def test_a_dry_run_warns_of_what_may_go_wrong(tmp_path):
    with configured(tmp_path, "[queues.target]\ndurable = false\n") as server:
        client = server.connect()
        client.set(b"source", b"data")
        done = run_darner("move", "source", "target", "--dry-run", DARNER_URL=f"127.0.0.1:{server.port}")
        client.close()
    assert done.stdout == "would move 1 items, 4 bytes\n"
    assert "warning: target is in memory only" in done.stderr


def test_a_queue_goes_through_a_file_and_through_a_pipe(darner, client, environment, tmp_path):
    for number in range(5):
        client.set(b"carried", b"%d" % number, flags=number)
    done = darner("export", "carried", "file", "--remove", directory=tmp_path)
    assert done.stdout == "file has 5 items, 5 bytes; 5 were removed from carried\n"
    done = darner("import", "file", "--dry-run", directory=tmp_path)
    assert done.stdout == "file, of carried, has 5 items, 5 bytes\n"
    assert darner("import", "file", directory=tmp_path).stdout == "imported 5 items, 5 bytes\n"
    again = darner("import", "file", directory=tmp_path, status=1)
    assert "already" in again.stderr
    assert again.stderr.count("\n") == 1
    subprocess.run(
        f"{DARNER} export carried - | {DARNER} import - carried.piped",
        shell=True,
        env=environment,
        capture_output=True,
        timeout=60,
        check=True,
    )
    flags = [client.values(b"get carried.piped")[0][1] for _ in range(5)]
    assert flags == [0, 1, 2, 3, 4]


def test_an_export_without_room_says_where_and_goes_on_when_there_is(darner, tmp_path, environment):
    darner("put", "large", input="".join(f"{number}\n" for number in range(3000)))
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 64; exec {DARNER} export large file"], cwd=tmp_path, env=environment,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "darner: file is not whole yet, and the same command goes on with it:",
        "darner: File too large: file",
    ]
    done = darner("export", "large", "file", directory=tmp_path)
    assert "going on" in done.stderr
    assert done.stdout.startswith("file has 3000 items")
    assert darner("export", "large", "/dev/full", status=1).stderr == (
        "darner: No space left on device: /dev/full\n"
    )


def test_an_export_whose_reader_has_gone_promises_nothing(darner, environment):
    darner("put", "unread.export", input="x\n" * 20_000)
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {DARNER} export unread.export - | true"],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")


def test_items_are_put_as_they_come_and_an_interrupted_put_ends_quietly(client, environment):
    put = subprocess.Popen(
        [DARNER, "put", "interrupted"], env=environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    put.stdin.write(b"kept\nnot whole")
    put.stdin.flush()
    until(lambda: client.stats().get("queue_interrupted_items") == "1")
    put.send_signal(signal.SIGINT)
    assert put.wait(timeout=60) == 130
    assert put.stderr.read() == b""
    put.stdin.close()
    put.stderr.close()
    assert client.take_all(b"interrupted") == [b"kept"]


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (("move", "same", "same"), 2, "onto itself"),
        (("put", "a/b", "x"), 2, "without space"),
        (("put", "a", "x", "--whole"), 2, "give no VALUE"),
        (("export", "none", "none.export"), 4, "has no queue none"),
        (("move", "none", "some"), 4, "has no queue none"),
        (("import", "/etc/hostname"), 1, "is no export of darner"),
        (("import", "/nowhere/at/all"), 1, "No such file"),
        (("move", "-s", "127.0.0.1:1", "a", "b"), 3, "refused"),
        (("put", "-s", "127.0.0.1:1", "a"), 3, "0 items are stored"),
    ],
)
def test_what_cannot_be_done_is_said_with_an_exit_status(darner, tmp_path, words, status, text):
    done = darner(*words, status=status, input="x\n", directory=tmp_path)
    assert text in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())
