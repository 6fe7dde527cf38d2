"""The commands that look at queues and items, and those that change whole queues."""

import base64
import contextlib
import json
import re

import pytest
from click.testing import CliRunner
from running import DARNER, run_darner
from terminals import Terminal

from darner.cli import connecting
from darner.cli.listing import queues
from darner.cli.main import main
from darner.cli.outcome import FAILED
from darner.cli.peeking import peek
from darner.cli.steering import configure, delete, flush, status
from darner.cli.top import top


@pytest.fixture
def run(standing):
    """A function that runs a command for the standing server."""

    def run(command, *words: object):
        environment = {"DARNER_URL": f"127.0.0.1:{standing.port}"}
        return CliRunner().invoke(command, [*map(str, words)], env=environment, prog_name="darner")

    return run


@pytest.fixture
def name(queue) -> str:
    return queue.decode()


class TestQueues:
    def test_are_a_table(self, run, client, queue, name):
        client.set(queue, b"x" * 2000)
        client.set(queue, b"y")
        assert client.get(queue + b"/cursor=billing")
        done = run(queues, f"{name}*", "--interval", 0)
        assert done.exit_code == 0
        head, row, cursor = done.stdout.splitlines()
        assert head.split() == ["QUEUE", "ITEMS", "BYTES", "AGE", "IN/S", "OUT/S", "WAIT", "RESV", "LAG"]
        assert re.fullmatch(rf"{name} +2 +2.0K +\d+\S* +- +- +0 +0 +1", row)
        assert re.fullmatch(rf"{name}/cursor=billing( +-){{7}} +1", cursor)
        assert len(head) == len(row) == len(cursor)

    def test_are_json_for_programs(self, run, client, queue, name):
        client.set(queue, b"xyz")
        found = json.loads(run(queues, name, "--json", "--interval", 0.2).stdout)
        assert (found["queue"], found["items"], found["bytes"], found["rate_in"]) == (name, 1, 3, 0)

    def test_a_name_is_written_as_every_command_takes_it(self, run, client, queue, name):
        client.set("é\x9b".encode() + queue, b"x")
        shown = f"%C3%A9%C2%9B{name}"
        assert run(queues, f"*{name}", "--interval", 0).stdout.splitlines()[1].startswith(f"{shown} ")
        assert run(peek, shown).exit_code == 0

    def test_none_that_matches_is_an_exit_status(self, run):
        done = run(queues, "nothing-like-it", "--interval", 0)
        assert (done.exit_code, done.stderr) == (4, "darner: no queue has a name that matches\n")

    def test_a_server_that_is_down_is_said_and_the_others_are_shown(self, run, standing, client, queue, name):
        client.set(queue, b"x")
        done = run(queues, name, "-s", "127.0.0.1:1", "-s", f"127.0.0.1:{standing.port}", "--interval", 0)
        assert done.exit_code == connecting.UNREACHABLE
        assert done.stderr == "darner: 127.0.0.1:1: [Errno 111] Connection refused\n"
        assert name in done.stdout

    def test_one_that_is_out_of_service_has_the_reason(self, server):
        wire = server.connect()
        wire.set(b"broken", b"x")
        assert server.stop() == 0
        for path in (server.data / "broken").iterdir():
            if path.is_file():
                path.write_text("?")
        server.start()
        done = run_darner("top", "--once", "--interval", "0.1", "-s", f"127.0.0.1:{server.port}")
        assert done.returncode == 0
        summary, trouble, _, row = done.stdout.splitlines()
        assert "queues=1 items=0" in summary
        assert re.match(r"! out of service: broken: .*Corruption", trouble)
        assert re.match(r"broken +out of service: .*Corruption.*darner repair", row)


class TestTopOnce:
    def test_writes_one_table(self, run, client, queue, name):
        client.set(queue, b"x")
        done = run(top, "--once", "--interval", 0.1, "--sort", "age", name)
        assert done.exit_code == 0
        summary, *_, row = done.stdout.splitlines()
        assert re.match(r"127.0.0.1:\d+  darner \S+  up  queues=\d+ items=\d+ bytes=\S+ clients=\d+", summary)
        assert row.startswith(name)

    def test_without_a_terminal_it_is_needed(self, run):
        done = run(top)
        assert (done.exit_code, "use --once" in done.stderr) == (2, True)


class TestPeek:
    def test_shows_items_and_leaves_them(self, run, client, queue, name):
        client.set(queue, b"one\ntwo", flags=5)
        client.set(queue, b"\x1b[31mred\x07\xff\xe2\x80\xae", exptime=1000)
        done = run(peek, name)
        assert done.exit_code == 0
        assert re.fullmatch(
            r"id=1 bytes=7 age=\S+ attempts=0 flags=5\none\ntwo\n\n"
            r"id=2 bytes=13 age=\S+ attempts=0 flags=0 expires_in=16m\d\ds\n"
            r"\\x1b\[31mred\\x07\\xff\\u202e\n",
            done.stdout,
        )
        assert len(client.drain(queue)) == 2

    def test_shows_hex(self, run, client, queue, name):
        client.set(queue, b"\x1b[31m" + bytes(range(16)))
        lines = run(peek, name, "--hex").stdout.splitlines()
        assert lines[1] == "00000000  1b 5b 33 31 6d 00 01 02 03 04 05 06 07 08 09 0a  .[31m..........."
        assert lines[2] == f"00000010  {'0b 0c 0d 0e 0f':<48} ....."

    def test_begins_with_an_id_and_ends_after_so_many(self, run, client, queue, name):
        for text in (b"a", b"b", b"c", b"d"):
            client.set(queue, text)
        lines = run(peek, name, "--from", 2, "-n", 2, "--json").stdout.splitlines()
        assert [(item["id"], item["data"]) for item in map(json.loads, lines)] == [(2, "b"), (3, "c")]

    def test_bytes_that_are_no_text_are_base64_in_json(self, run, client, queue, name):
        client.set(queue, b"\xff")
        found = json.loads(run(peek, name, "--json").stdout)
        assert "data" not in found
        assert base64.b64decode(found["data_base64"]) == b"\xff"

    def test_a_long_item_is_cut_unless_it_is_wanted_whole(self, run, client, queue, name):
        client.set(queue, b"x" * 1500)
        assert run(peek, name).stdout.splitlines()[1:] == ["x" * 1024, "(476 bytes more: --all shows them)"]
        assert run(peek, name, "--all").stdout.splitlines()[1:] == ["x" * 1500]

    def test_a_large_item_is_not_fetched_unless_it_is_wanted_whole(self, run, client, queue, name):
        client.set(queue, b"x" * ((1 << 20) + 1))
        assert run(peek, name).stdout.splitlines()[1] == "(larger than 1 MiB: --all shows it)"
        assert json.loads(run(peek, name, "--json").stdout)["data"] is None
        assert len(run(peek, name, "--all").stdout.splitlines()[1]) == (1 << 20) + 1

    def test_nothing_is_an_exit_status(self, run, name):
        for words in ((name,), (name, "--json")):
            done = run(peek, *words)
            assert (done.exit_code, done.stdout) == (connecting.NOTHING, "")
            assert done.stderr.endswith("nothing waits\n")


class TestConfigure:
    def test_changes_settings_and_says_what_is_wrong(self, run, client, queue, name):
        done = run(configure, name, "max_items=1", "max_age=5m")
        assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
        client.set(queue, b"1")
        assert client.set(queue, b"2") == b"NOT_STORED\r\n"
        assert run(configure, name, "max_items=").exit_code == 0
        assert client.set(queue, b"2") == b"STORED\r\n"
        done = run(configure, name, "max_items=x")
        assert done.exit_code == FAILED
        assert 'max_items is "x", and must be a whole number from 1' in done.stderr

    @pytest.mark.parametrize("words", [["max_items"], ["max_items=1", "max_items=2"]])
    def test_takes_each_setting_once_with_a_value(self, run, name, words):
        assert run(configure, name, *words).exit_code == 2


class TestFlushAndDelete:
    def test_flush_discards_what_waits(self, run, client, queue, name):
        client.set(queue, b"x")
        done = run(flush, "--yes", name)
        assert (done.exit_code, done.stderr) == (0, "")
        assert re.fullmatch(rf"127.0.0.1:\d+: flushed {name}\n", done.stdout)
        assert client.get(queue) is None

    def test_delete_drops_queues_and_cursors(self, run, client, queue, name):
        client.set(queue, b"x")
        assert client.get(queue + b"/cursor=c") == b"x"
        assert run(delete, "-y", f"{name}/cursor=c").exit_code == 0
        assert client.get(queue + b"/cursor=c") == b"x"
        assert run(delete, "-y", name).exit_code == 0
        assert f"queue_{name}_items" not in client.stats()

    @pytest.mark.parametrize("command", [flush, delete])
    def test_without_a_terminal_yes_is_needed(self, run, client, queue, name, command):
        client.set(queue, b"x")
        done = run(command, name)
        assert (done.exit_code, done.stderr) == (2, "darner: there is no terminal to ask at: say --yes\n")
        assert client.get(queue) == b"x"

    @pytest.mark.parametrize(("answer", "status", "left"), [("y", 0, None), ("n", 1, b"x")])
    def test_at_a_terminal_the_answer_counts(
        self, run, client, queue, name, answer, status, left, monkeypatch
    ):
        asked = []

        def confirm(question, **_):
            asked.append(question)
            return answer == "y"

        monkeypatch.setattr("darner.cli.steering.check_terminal", lambda: None)
        monkeypatch.setattr("click.confirm", confirm)
        client.set(queue, b"x")
        assert run(flush, name).exit_code == status
        assert asked[0].endswith(f"discard {name} (1 items)?")
        assert client.get(queue) == left

    def test_an_end_of_input_at_the_question_changes_nothing(self, standing, client, queue, name):
        client.set(queue, b"x")
        with contextlib.closing(
            Terminal(DARNER, "delete", name, "-s", f"127.0.0.1:{standing.port}")
        ) as terminal:
            terminal.see("delete .* \\[y/N\\]: ")
            # as Ctrl-C, which `input` misses in the instant before it waits
            terminal.press("\x04")
            assert terminal.end() == 130
            assert "Traceback" not in terminal.text
        assert client.get(queue) == b"x"

    def test_a_name_that_is_wrong_is_said(self, run, client, queue, name):
        client.set(queue, b"x")
        done = run(delete, "--yes", name, "wrok")
        assert done.exit_code == connecting.NOTHING
        assert done.stderr.endswith("has no wrok\n")
        assert f"deleted {name}" in done.stdout


class TestStatus:
    def test_is_said_and_set(self, run):
        assert run(status).stdout == "up\n"
        assert json.loads(run(status, "--json").stdout)["status"] == "up"
        try:
            assert run(status, "readonly").stdout == "readonly\n"
            assert run(flush, "--yes", "x").exit_code == connecting.NOTHING
            assert "status: 127.0.0.1" in run(top, "--once", "--interval", 0.1).stdout
        finally:
            assert run(status, "up").exit_code == 0

    def test_others_are_none(self, run):
        assert run(status, "down").exit_code == 2


class TestHelp:
    @pytest.mark.parametrize(
        "name", ["configure", "delete", "flush", "peek", "ping", "queues", "stats", "status", "top"]
    )
    def test_teaches_by_examples_and_has_the_exit_statuses(self, name):
        said = CliRunner().invoke(main, [name, "--help"], prog_name="darner").stdout
        assert f"Examples:\n    darner {name}" in said
        assert "Exit status:\n    0   done" in said
        assert max(map(len, said.splitlines())) <= 100
