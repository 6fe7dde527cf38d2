"""The format of the log: for people at a terminal, for programs elsewhere; and the text of `--help`."""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import time

import pytest
from running import DARNER, run_darner

from darner.cli.main import main
from darner.log import console

STARTED = re.compile(
    r"^\w{3} \d\d \d\d:\d\d:\d\d \[info   \] darner is up {17}version=\S+ pid=\d+$", re.MULTILINE
)
ESCAPE = "\x1b["
FOREIGN = """
import logging
from darner.log.lines import choose_log_format, set_up_log
set_up_log()
choose_log_format("{form}")
logging.getLogger("asyncio").error("a\\x1bb\\nc", exc_info=ValueError("\\x9b"))
"""


@pytest.fixture
def on_terminal(tmp_path):
    """A function that runs a server whose standard error is a terminal; it returns the text on that."""

    def start(*options: str, config: str = "", **environment: str) -> str:
        (tmp_path / "darner.toml").write_text(config)
        command = [DARNER, "-d", str(tmp_path / "data"), "-p", "0", "-c", str(tmp_path / "darner.toml")]
        ours, theirs = pty.openpty()
        inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
        process = subprocess.Popen([*command, *options], stderr=theirs, env=inherited | environment)
        os.close(theirs)
        said = b""
        try:
            while b"queues" not in said:
                said += os.read(ours, 65536)
            process.terminate()
            with contextlib.suppress(OSError):  # the end of a terminal
                while data := os.read(ours, 65536):
                    said += data
        finally:
            process.kill()
            process.wait()
            os.close(ours)
        return said.decode().replace("\r\n", "\n")

    return start


class TestLogFormat:
    def test_at_a_terminal_is_in_columns_in_local_time(self, on_terminal):
        before = time.time()
        said = on_terminal(TZ="UTC-5", TERM="xterm", NO_COLOR="1")
        assert STARTED.search(said)
        assert ESCAPE not in said
        # five hours behind UTC: the sign is that of POSIX
        assert said.startswith(time.strftime("%b %d %H:", time.gmtime(before + 5 * 3600)))
        assert re.search(r"^.{15} \[info   \] listening {20}host=127\.0\.0\.1 port=\d+$", said, re.MULTILINE)

    def test_at_a_terminal_has_colors_if_it_has_them_and_they_are_wanted(self, on_terminal):
        assert ESCAPE in on_terminal(TERM="xterm-256color")
        assert ESCAPE in on_terminal(TERM="xterm-256color", NO_COLOR="")
        assert ESCAPE not in on_terminal(TERM="xterm-256color", NO_COLOR="1")
        assert ESCAPE not in on_terminal(TERM="dumb")
        assert ESCAPE not in on_terminal()

    def test_elsewhere_is_logfmt(self, server):
        assert re.search(
            r"^timestamp=\S+Z level=info event=\"darner is up\" version=\S+ pid=\d+$",
            server.log,
            re.MULTILINE,
        )
        assert ESCAPE not in server.log

    def test_has_what_other_libraries_log_written_as_the_rest(self):
        said = subprocess.run(
            [sys.executable, "-c", FOREIGN.format(form="auto")],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stderr
        (line,) = said.splitlines()
        assert re.match(r"timestamp=\S+Z level=error event=a\\x1bb\\nc logger=asyncio ", line)
        assert "ValueError: \\\\x9b" in line

    def test_is_what_it_is_told_to_be(self, on_terminal, tmp_path):
        assert 'level=info event="darner is up"' in on_terminal("--log-format", "logfmt", TERM="xterm")
        assert 'level=info event="darner is up"' in on_terminal(
            config='log_format = "logfmt"\n', TERM="xterm"
        )
        done = subprocess.Popen(
            [DARNER, "-d", str(tmp_path / "data"), "-p", "0", "--log-format", "console"],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TERM": "xterm"},
        )
        lines = [done.stderr.readline() for _ in range(3)]
        done.terminate()
        rest = done.communicate(timeout=20)[1]
        said = "".join(lines) + rest
        assert STARTED.search(said)
        assert ESCAPE not in said

    def test_json_is_an_object_a_line_with_what_logfmt_has(self, tmp_path):
        done = subprocess.Popen(
            [DARNER, "-d", str(tmp_path / "data"), "-p", "0", "--log-format", "json"],
            stderr=subprocess.PIPE,
            text=True,
        )
        lines = [done.stderr.readline() for _ in range(3)]
        done.terminate()
        lines += done.communicate(timeout=20)[1].splitlines()
        events = [json.loads(line) for line in lines]
        assert [event["event"] for event in events] == [
            "darner is up", "listening", "data", "closing", "closed",
        ]  # fmt: skip
        assert {tuple(event)[:3] for event in events} == {("timestamp", "level", "event")}
        assert isinstance(events[1]["port"], int)

    def test_json_of_other_libraries_is_one_line_with_nothing_raw(self):
        said = subprocess.run(
            [sys.executable, "-c", FOREIGN.format(form="json")],
            capture_output=True, text=True, timeout=60, check=True,
        ).stderr  # fmt: skip
        (line,) = said.splitlines()
        event = json.loads(line)
        assert event["event"] == "a\\x1bb\\nc"
        assert (event["level"], event["logger"]) == ("error", "asyncio")
        assert event["exception"].startswith("ValueError: ")
        assert "\x9b" not in event["exception"]

    @pytest.mark.parametrize("form", ["yaml", "", "LOGFMT"])
    def test_of_another_kind_is_refused(self, tmp_path, form):
        done = run_darner("-d", tmp_path, "--log-format", form)
        assert done.returncode == 2
        assert "auto" in done.stderr
        config = tmp_path / "darner.toml"
        config.write_text(f'log_format = "{form}"\n')
        done = run_darner("-c", config)
        assert f'darner.toml:1: log_format is "{form}"' in done.stderr


class TestConsole:
    def render(self, *, colors: bool = False, **event: object) -> str:
        return console.renderer(colors=colors)(None, "", {"level": "warning", **event})

    def test_one_can_tell_where_a_value_ends(self):
        line = self.render(event="said", reason='no "such" file', queue="a=b", empty="", count=3)
        assert line.endswith(r'reason="no \"such\" file" queue="a=b" empty="" count=3')

    def test_a_traceback_has_lines_of_its_own(self):
        line = self.render(
            event="internal error", exception="Traceback:\n  here\nValueError: x", queue="work"
        )
        first, *rest = line.split("\n")
        assert first.endswith("queue=work")
        assert rest == ["Traceback:", "  here", "ValueError: x"]

    def test_a_long_event_is_not_cut(self):
        assert "x" * 200 + " queue=work" in self.render(event="x" * 200, queue="work")


class TestHelp:
    def help(self, *words: str) -> str:
        done = run_darner(*words, "--help")
        done.check_returncode()
        assert max(map(len, done.stdout.splitlines())) <= 100
        return done.stdout

    def test_has_its_options_in_groups_and_leaves_none_out(self):
        said = self.help()
        at = [
            said.index(title)
            for title in ("Where:", "Configuration:", "Log, on", "Other options:", "Commands that")
        ]
        assert at == sorted(at)
        where = said[at[0] : at[1]]
        for option in ("--data", "--host", "--port", "--socket"):
            assert option in where
        for param in main.params:
            assert said.count(f" {param.opts[-1]}") >= 1

    def test_has_examples_signals_and_exit_codes(self):
        said = self.help()
        for part in ("Examples:", "Signals:", "Exit status:", "--check-config", "docs/darner.toml"):
            assert part in said
        for code in ("  0   ", "  1   ", "  2   "):
            assert code in said

    def test_of_each_command_has_an_example(self):
        for command in main.commands:
            assert f"  darner {command} " in self.help(command)

    def test_first_example_does_what_it_says(self, server):
        example = re.search(r"printf '(.+)' \| nc 127", self.help())[1]
        with contextlib.closing(server.connect()) as wire:
            wire.send(example.encode().decode("unicode_escape").encode())
            assert [wire.line() for _ in range(4)] == [
                b"STORED\r\n",
                b"VALUE work 0 5\r\n",
                b"hello\r\n",
                b"END\r\n",
            ]
            assert wire.closed()
