"""`darner top` at a terminal."""

import contextlib
import re
import signal
import termios

import pytest
from rich.console import Console
from running import DARNER
from terminals import Terminal

from darner.cli.screen import Screen
from darner.client.stats import QueueStats, ServerStats
from darner.tools.overview import Overview, QueueView

UP, DOWN, RIGHT = "\x1b[A", "\x1b[B", "\x1b[C"


@pytest.fixture
def top(standing):
    with contextlib.ExitStack() as stack:

        def begin(*words: str) -> Terminal:
            server = f"127.0.0.1:{standing.port}"
            command = (DARNER, "top", "--interval", "0.2", "-s", server, *words)
            return stack.enter_context(contextlib.closing(Terminal(*command)))

        yield begin


def test_queues_are_seen_live_and_keys_do_what_they_say(top, client, queue):
    names = [queue + letter for letter in (b"a", b"b")]
    for name in names:
        client.set(name, b"x")
    terminal = top(f"{queue.decode()}?", "--sort", "name")
    terminal.see(rf"{queue.decode()}a +1 ")
    client.set(names[0], b"x")
    terminal.see(rf"{queue.decode()}a +2 ")
    terminal.press(RIGHT)
    terminal.see("sorted by items")
    terminal.press(DOWN + "\r")
    terminal.see(rf"{queue.decode()}b  on .*total_items +1 ".replace(".*", r"[\s\S]*"))
    terminal.press("\x7f")
    terminal.see("QUEUE +")
    terminal.press("q")
    assert terminal.end() == 0
    assert termios.tcgetattr(terminal.theirs) == terminal.before
    # the screen of before is back, and so is the cursor
    assert "\x1b[?1049l" in terminal.text
    assert "\x1b[?25h" in terminal.text


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_the_terminal_as_it_was(top, number, status):
    terminal = top()
    terminal.see("darner top")
    if number == signal.SIGINT:
        terminal.press("\x03")
    else:
        terminal.process.send_signal(number)
    assert terminal.end() == status
    assert termios.tcgetattr(terminal.theirs) == terminal.before
    assert "\x1b[?1049l" in terminal.text
    assert "Traceback" not in terminal.text


def test_a_server_that_goes_is_shown_as_it_was_and_comes_back(top, server):
    wire = server.connect()
    wire.set(b"work", b"x")
    terminal = top("-s", f"127.0.0.1:{server.port}", "work")
    terminal.see(r"work +127\.0\.0\.1:\d+ +1 ")
    server.kill()
    terminal.see("does not answer")
    terminal.see(r"work +127\.0\.0\.1:\d+ +1 ")
    server.options = ("--port", str(server.port))
    server.start()
    server.connect().set(b"work", b"x")
    terminal.see(r"work +127\.0\.0\.1:\d+ +2 ")


def drawn(screen: Screen, *overviews: Overview, width: int = 80, height: int = 24) -> list[str]:
    text = screen.draw(overviews, width, height)
    console = Console(width=width, height=height, no_color=True, force_terminal=False)
    with console.capture() as capture:
        console.print(text, end="")
    return capture.get().split("\n")


def many(count: int) -> Overview:
    stats = [QueueStats(name=f"{'long-' * 40}{number:04}", items=number) for number in range(count)]
    return Overview(
        "a:1", stats=ServerStats(pid=1, status="up"), queues={each.name: QueueView(each) for each in stats}
    )


class TestScreen:
    @pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10), (200, 60), (20, 5)])
    def test_fits_the_terminal(self, width, height):
        lines = drawn(Screen("*", "items"), many(1000), many(10), width=width, height=height)
        assert len(lines) == height
        assert max(map(len, lines)) <= width

    def test_a_long_name_keeps_its_end(self):
        assert any(
            re.match(r"long-\S*…\S*0999 +999 ", line) for line in drawn(Screen("*", "items"), many(1000))
        )

    def test_the_queue_that_is_chosen_stays_in_sight_wherever_it_goes(self):
        screen = Screen("*", "items")
        drawn(screen, many(1000))
        for key, last in (("end", "0000"), ("up", "0001"), ("home", "0999"), ("pagedown", "0980")):
            assert screen.press(key)
            assert any(re.search(f"{last} ", line) for line in drawn(screen, many(1000)))

    def test_names_and_errors_of_strangers_have_no_effect(self):
        evil = QueueStats(name="\x1b[2J\u202e[bold]x", items=1, out_of_service="\x1b]0;x\x07")
        seen = Overview(
            "a:1", stats=ServerStats(pid=1, version="\x1b[5m"), queues={evil.name: QueueView(evil)}
        )
        screen = Screen("*", "items")
        lines = drawn(screen, seen)
        screen.press("enter")
        for line in [*lines, *drawn(screen, seen)]:
            assert line.isprintable()
        assert any("%1B[2J%E2%80%AE[bold]x" in line for line in lines)
