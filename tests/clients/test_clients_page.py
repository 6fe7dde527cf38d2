"""The snippets of docs/clients.md, each run as it stands there, except for the port."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from logins import HASH
from node import NODE, NODE_MODULES, why_node_cannot_run
from running import configured, running

PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
SNIPPETS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
# a comment behind a statement tells what that prints
PRINTED = re.compile(r"\S +(?:#|//) (.*)")


def why_not(language: str, snippet: str) -> str:
    """Return why this snippet cannot run here; "" if it can."""
    if language == "js":
        return why_node_cannot_run()
    if language == "sh":
        return "" if shutil.which("memccp") else "there are no libmemcached-tools"
    if language == "php":
        php = shutil.which("php")
        modules = (
            subprocess.run([php, "-m"], capture_output=True, text=True, check=True).stdout if php else ""
        )
        return "" if "memcached" in modules.split() else "there is no php, or none with memcached"
    missing = [
        module
        for module in re.findall(r"^(?:from|import) (\w+)", snippet, re.MULTILINE)
        if importlib.util.find_spec(module) is None
    ]
    return f"{missing[0]} is not installed" if missing else ""


@pytest.fixture
def server(tmp_path, snippet):
    if "login" in snippet:
        users = tmp_path / "users.toml"
        users.touch(0o600)
        users.write_text(f'[alice]\npassword = "{HASH}"\nadmin = true\n')
        serving = configured(tmp_path, f'auth_file = "{users}"\n')
    else:
        serving = running(tmp_path / "data")
    with serving as server:
        yield server


@pytest.mark.parametrize(
    ("language", "snippet"),
    [pytest.param(*found, id=f"{number}-{found[0]}") for number, found in enumerate(SNIPPETS, 1)],
)
def test_prints_what_the_page_says(language, snippet, server, tmp_path):
    if why := why_not(language, snippet):
        pytest.skip(why)
    command = {"python": sys.executable, "js": NODE, "php": "php", "sh": "sh"}[language]
    script = tmp_path / f"snippet.{language}"
    script.write_text(snippet.replace("22133", str(server.port)))
    done = subprocess.run(
        [command, script], cwd=tmp_path, env=os.environ | {"NODE_PATH": str(NODE_MODULES)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.split("\n") if line] == PRINTED.findall(snippet)


def test_the_page_has_snippets_of_every_kind():
    assert {language for language, _ in SNIPPETS} >= {"python", "js", "php", "sh"}
