"""Make a closed and a killed data directory with the server of an older commit: make.py DARNER COMMIT."""

import contextlib
import sys
import tarfile
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))

from running import Server, Wire, running

CONFIG = '[queues."kept"]\nmax_open_reads = 100\n'


def fill(wire: Wire, other: Wire) -> None:
    """Set something of each kind that a data directory may hold."""
    for number in range(300):
        wire.set(b"work", b"item %d" % number, flags=number)
    for _ in range(100):
        wire.get(b"work")
    wire.set(b"large", bytes(range(256)) * 600)
    wire.set(b"large", b"small")
    for number in range(10):
        wire.set(b"kept", b"kept %d" % number)
    for _ in range(5):
        other.get(b"kept/open")
    wire.get(b"orders+audit")
    for number in range(3):
        wire.set(b"orders", b"order %d" % number)
    wire.get(b"orders/cursor=billing")
    wire.set(b"later/delay=4000000000000", b"in a century")
    wire.set(b"dated", b"never gone", exptime=4_000_000_000)
    wire.set(b"deleted", b"x")
    wire.ask(b"delete deleted\r\n")
    wire.set("queue-größe".encode(), b"name")
    wire.set(b"n" * 250, b"long")


def fill_more(wire: Wire) -> None:
    """Set what the directories of commit 4ec12cf do not hold."""
    for number in range(3):
        wire.set(b"failing", b"task %d" % number)
    for _ in range(2):
        assert wire.get(b"failing/open") == b"task 0"
        wire.ask(b"get failing/abort\r\n")
    assert wire.get(b"orders/cursor=shipping") == b"order 0"
    wire.set(b"short", b"expires while the server is down", exptime=10)
    wire.set(b"short", b"stays")
    wire.set(b"due/delay=10000", b"is due while the server is down")
    wire.set(b"due/delay=10100", bytes(range(256)) * 300)


def fill_log(wire: Wire) -> None:
    """Set what only the log will hold."""
    for number in range(300, 320):
        wire.set(b"work", b"item %d" % number, flags=number)
    wire.get(b"work")
    wire.set(b"new", b"only in the log")
    wire.set(b"orders", b"order 3")
    wire.set(b"large", b"L" * 100_000)


def fill_log_more(wire: Wire) -> None:
    """Change in the log alone what `fill_more` has set."""
    assert wire.get(b"failing/open") == b"task 0"
    wire.ask(b"get failing/abort\r\n")
    assert wire.get(b"orders/cursor=shipping") == b"order 1"
    wire.set(b"short", b"expires in the log", exptime=10)
    wire.set(b"due/delay=10200", b"is due in the log")


def make(home: Path, server: Server, commit: str, *, kill: bool) -> None:
    """Fill the directory of a server, end that, and pack it."""
    with contextlib.closing(server.connect()) as wire, contextlib.closing(server.connect()) as other:
        fill(wire, other)
        fill_more(wire)
        time.sleep(2.5)  # by then LevelDB has it
        if kill:
            fill_log(wire)
            fill_log_more(wire)
            server.kill()
        else:
            server.stop()
    with tarfile.open(Path(__file__).with_name(f"{commit}-{home.name}.tar.gz"), "w:gz") as archive:
        # .reserve has nothing but room, which the next start takes again
        archive.add(home, home.name, filter=lambda member: None if ".reserve" in member.name else member)


if __name__ == "__main__":
    darner, commit = sys.argv[1:]
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "darner.toml"
        config.write_text(CONFIG)
        for name in ("closed", "killed"):
            home = Path(scratch) / name
            with running(home, "--config", str(config), command=(darner,)) as server:
                make(home, server, commit, kill=name == "killed")
