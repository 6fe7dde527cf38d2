"""What docs/migrating.md shows is what happens."""

import contextlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from other_servers import addx
from running import run_darner, running

PAGE = (Path(__file__).parents[2] / "docs" / "migrating.md").read_text()


def test_the_session_says_what_is_shown(tmp_path):
    src, data = tmp_path / "kestrel", tmp_path / "darner"
    src.mkdir()
    (src / "mail").write_bytes(addx(b"hello"))
    (src / "orders").write_bytes(addx(b"old", expires_ms=1) + addx(b"one!") + addx(b"two!"))
    (src / "orders+audit").write_bytes(addx(b"one!") + addx(b"two!"))
    (session,) = re.findall(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    paths = {"/var/spool/kestrel": str(src), "/var/lib/darner": str(data)}
    for shown, real in paths.items():
        session = session.replace(shown, real)
    *steps, start = re.findall(r"^\$ darner (.*)\n((?:[^$].*\n)*)", session, re.MULTILINE)
    for command, said in steps:
        done = run_darner(*shlex.split(command))
        assert (done.stdout, done.returncode) == (said, 0)
    assert start == (f"--data {data}", "")
    with running(data) as server, contextlib.closing(server.connect()) as wire:
        assert wire.take_all(b"orders") == [b"one!", b"two!"]


def test_the_script_carries_all_items_over(tmp_path):
    pytest.importorskip("pymemcache")
    (script,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "carry.py").write_text(script)
    items = [b"%d" % number * number for number in range(50)]
    with running(tmp_path / "new") as new, running(tmp_path / "old") as old:
        ports = [f"127.0.0.1:{server.port}" for server in (new, old)]
        with contextlib.closing(new.connect()) as wire:
            for item in items:
                wire.set(b"orders", item)
        done = subprocess.run(
            [sys.executable, tmp_path / "carry.py", *ports, "orders", "mail"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.stdout == "orders: carried 50 items\nmail: carried 0 items\n", done.stderr
        with contextlib.closing(old.connect()) as wire:
            assert wire.take_all(b"orders") == items
        assert new.stat("queue_orders_items") == 0


def test_each_setting_that_it_names_is_one():
    example = (Path(__file__).parents[2] / "docs" / "darner.toml").read_text()
    table = PAGE.partition("### Settings of Kestrel")[2].partition("\n## ")[0]
    named = {
        word
        for row in table.splitlines()
        for word in re.findall(r"`([a-z_]+)", row.split("|")[-2] if "|" in row else "")
    }
    assert len(named) > 10
    assert {name for name in named if not re.search(rf"^#?{name} = ", example, re.MULTILINE)} <= {"aliases"}
