"""The command `top`: queues as they are from second to second."""

import contextlib
import os
import re
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator, Mapping, Sequence

import click

from darner.cli.connecting import SETTINGS, Seconds, epilog
from darner.cli.listing import exit_if_failed, look, queues_options, say_failures, write_table
from darner.client.client import Client
from darner.tools import listing
from darner.tools.watching import Watch

# A pause is at least so many times as long as the answer before it took: where there are very many queues,
# polls are fewer.
SHARE = 10

_KEY = re.compile(rb"\x1b(?:\[[0-9;]*[A-Za-z~]|O[A-Z])|[\x00-\xff]")
_NAMES = {
    b"\x1b[A": "up", b"\x1b[B": "down", b"\x1b[C": "right", b"\x1b[D": "left",
    b"\x1bOA": "up", b"\x1bOB": "down", b"\x1bOC": "right", b"\x1bOD": "left",
    b"\x1b[5~": "pageup", b"\x1b[6~": "pagedown", b"\x1b[H": "home", b"\x1b[F": "end",
    b"\x1b[1~": "home", b"\x1b[4~": "end", b"\x1bOH": "home", b"\x1bOF": "end",
    b"\x1b": "escape", b"\n": "enter", b"\r": "enter", b"\x7f": "backspace", b"\x08": "backspace",
}  # fmt: skip


@click.command(
    short_help="Show queues from second to second.",
    context_settings=SETTINGS,
    epilog=epilog("""
  darner top
  darner top --sort age 'mail*'
  darner top -s db1:22133 -s db2:22133
  darner top --once                           what is wrong, and all queues: for cron

\b
Keys:
  up, down, page up, page down, home, end    choose a queue
  left, right                                sort by another column; r reverses
  Enter, Esc                                 all of one queue, and back
  q, Ctrl-C                                  end
"""),
)
@queues_options(Seconds(3600, least=0.1), 2.0, "How often servers are asked.")
@click.option("--once", is_flag=True, help="Write one table, with the rates of an interval, and end.")
def top(
    clients: Mapping[str, Client], *, pattern: str, sort: str | None, interval: float, once: bool
) -> None:
    """Show the queues whose names match PATTERN, with what is wrong first, until a key ends it.

    The columns are those of `darner queues`. A server that does not answer is shown as it was, and comes back
    by itself.
    """
    if once:
        watches = look(clients, interval)
        for overview in say_failures(watches):
            rows = listing.sort(listing.rows([overview], pattern), sort or "items")
            write_table(overview, rows, with_head=True, with_troubles=True)
        exit_if_failed(watches)
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM") in (None, "", "dumb"):
        raise click.UsageError("this is no terminal that can show it: use --once, or darner queues")
    _run([Watch(address, client) for address, client in clients.items()], pattern, sort or "items", interval)


def _run(watches: Sequence[Watch], pattern: str, sort: str, interval: float) -> None:
    """Show servers until a key or a signal ends it."""
    # rich takes 0.1 s to load
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415

    from darner.cli.screen import Screen  # noqa: PLC0415

    screen, console = Screen(pattern, sort), Console(highlight=False)
    live = Live(console=console, screen=True, auto_refresh=False)
    with _watching(watches, interval) as changed, _keys(), live:
        while True:
            overviews = [watch.overview for watch in watches]
            live.update(screen.draw(overviews, *console.size), refresh=True)
            ready, _, _ = select.select([sys.stdin, changed], [], [], 1.0)
            if changed in ready:
                os.read(changed, 4096)
            if sys.stdin in ready:
                pressed = os.read(sys.stdin.fileno(), 4096)
                keys = [_NAMES.get(key, key.decode("latin-1")) for key in _KEY.findall(pressed)]
                if not pressed or not all(screen.press(key) for key in keys):
                    return


@contextlib.contextmanager
def _watching(watches: Sequence[Watch], interval: float) -> Iterator[int]:
    """Ask each server in a thread of its own; gives a descriptor that can be read after each answer."""
    changed, change = os.pipe()
    has_ended = threading.Event()

    def watch_one(watch: Watch) -> None:
        while not has_ended.is_set():
            begun = time.monotonic()
            watch.look()
            took = time.monotonic() - begun
            with contextlib.suppress(OSError):
                os.write(change, b".")
            has_ended.wait(interval if watch.failure else max(interval, took * SHARE))

    for watch in watches:
        # a server that hangs holds nobody up at the end
        threading.Thread(target=watch_one, args=(watch,), daemon=True).start()
    try:
        yield changed
    finally:
        has_ended.set()


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Have keys come one by one and unseen; however it ends, the terminal is as it was."""

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = termios.tcgetattr(sys.stdin)
    ended_by = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    # a stopped one would leave its screen behind
    ended_by[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        for number, handler in ended_by.items():
            signal.signal(number, handler)
