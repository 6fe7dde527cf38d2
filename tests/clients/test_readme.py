"""The snippets of the README, each run as it stands there, except for the port."""

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()
# a comment behind a print begins with what that prints
PRINTED = re.compile(r"print\(.*\)  # (.*)")


@pytest.mark.parametrize("snippet", re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL))
def test_a_snippet_prints_what_it_says(snippet, server, tmp_path):
    script = tmp_path / "snippet.py"
    script.write_text(snippet.replace("22133", str(server.port)))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said, comments = done.stdout.splitlines(), PRINTED.findall(snippet)
    assert len(said) == len(comments)
    assert all(comment.partition(": ")[0] == line for line, comment in zip(said, comments, strict=True))


def test_the_session_is_answered_as_it_says(server):
    session = r"paste\n\n```\n(.*?)```\n\nand the answers are\n\n```\n(.*?)```"
    request, answer = re.search(session, README, re.DOTALL).groups()
    with contextlib.closing(server.connect()) as wire:
        wire.send(request.replace("\n", "\r\n").encode())
        for line in answer.splitlines():
            assert wire.line() == f"{line}\r\n".encode()
        assert wire.closed()
