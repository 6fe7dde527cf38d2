"""docs/brokers.md: its programs print what it says, and it has each argument of the brokers."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from library_workers import library_working

from darner.dramatiq import DarnerBroker as DramatiqBroker
from darner.taskiq import DarnerBroker as TaskIQBroker

PAGE = Path(__file__).parents[2] / "docs" / "brokers.md"
CHAPTERS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("library", ["TaskIQ", "Dramatiq"])
def test_the_worker_prints_what_the_page_says(library, server, tmp_path):
    program, commands, printed = re.findall(
        r"^```\w*\n(.*?)^```$", CHAPTERS[library], re.MULTILINE | re.DOTALL
    )
    (tmp_path / "tasks.py").write_text(program.replace("22133", str(server.port)))
    send, work = commands.splitlines()
    assert send == "python tasks.py"
    subprocess.run([sys.executable, "tasks.py"], cwd=tmp_path, timeout=60, check=True)
    with library_working(tmp_path, *work.split()) as worker:
        if library == "TaskIQ":
            assert worker.said(3) == printed.splitlines()
        else:  # Dramatiq's log has what its workers print
            worker.wait_for_log(printed.splitlines()[-1])
            assert re.findall(r"^hello.*\n", worker.log, re.MULTILINE) == printed.splitlines(keepends=True)


@pytest.mark.parametrize(("library", "broker"), [("TaskIQ", TaskIQBroker), ("Dramatiq", DramatiqBroker)])
def test_each_argument_is_on_the_page(library, broker):
    arguments = re.findall(r"^\| `(\w+)` \|", CHAPTERS[library], re.MULTILINE)
    assert arguments == list(inspect.signature(broker).parameters)
