"""Make what is in here with the server of an older commit: make.py DARNER."""

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
    """Have something of each kind that a directory may hold."""
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


def fill_log(wire: Wire) -> None:
    """Have something that only the log has."""
    for number in range(300, 320):
        wire.set(b"work", b"item %d" % number, flags=number)
    wire.get(b"work")
    wire.set(b"new", b"only in the log")
    wire.set(b"orders", b"order 3")
    wire.set(b"large", b"L" * 100_000)


def make(home: Path, server: Server, *, kill: bool) -> None:
    with contextlib.closing(server.connect()) as wire, contextlib.closing(server.connect()) as other:
        fill(wire, other)
        time.sleep(2.5)  # LevelDB has it then
        if kill:
            fill_log(wire)
            server.kill()
        else:
            server.stop()
    with tarfile.open(Path(__file__).with_name(f"4ec12cf-{home.name}.tar.gz"), "w:gz") as archive:
        archive.add(home, home.name)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "darner.toml"
        config.write_text(CONFIG)
        for name in ("closed", "killed"):
            home = Path(scratch) / name
            with running(home, "--config", str(config), command=(sys.argv[1],)) as server:
                make(home, server, kill=name == "killed")
