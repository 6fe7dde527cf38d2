"""Completion of command lines, in each shell as a user has it."""

import contextlib
import os
import shutil
from pathlib import Path

import pytest
from running import DARNER, run_darner
from terminals import Terminal

# What a user is told to write into a file of the shell, and how the shell begins then.
SHELLS = {
    "bash": (".bashrc", 'eval "$(darner completion bash)"\nPS1="READY "\n', ("--rcfile", ".bashrc", "-i")),
    "zsh": (
        ".zshrc",
        'autoload -U compinit; compinit -u\neval "$(darner completion zsh)"\nPS1="READY "\n',
        ("-i",),
    ),
    "fish": (".config/fish/config.fish", 'function fish_prompt; echo "READY "; end\n', ("-i",)),
}


@pytest.fixture(params=SHELLS)
def shell(request, tmp_path):
    """A shell at a terminal, in a home directory of its own."""
    name = request.param
    if shutil.which(name) is None:
        pytest.skip(f"there is no {name}")
    file, text, options = SHELLS[name]
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    if name == "fish":
        script = tmp_path / ".config/fish/completions/darner.fish"
        script.parent.mkdir()
        script.write_text(run_darner("completion", "fish").stdout)
    environment = {
        "HOME": str(tmp_path),
        "ZDOTDIR": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / ".config"),
        "XDG_DATA_HOME": str(tmp_path / ".local"),
        "PATH": f"{Path(DARNER).parent}{os.pathsep}{os.environ['PATH']}",
        "LC_ALL": "C.UTF-8",
    }
    terminal = Terminal(name, *options, lines=60, directory=tmp_path, **environment)
    with contextlib.closing(terminal):
        terminal.see("READY ")
        yield terminal


def test_a_shell_completes_commands_options_and_files(shell, standing, tmp_path):
    shell.press("darner \t\t")
    shell.see(r"(?=[\s\S]*completion)(?=[\s\S]*top)")
    shell.press(f"\x15darner pi\t--serv\t127.0.0.1:{standing.port}\r")
    shell.see(r": darner \d")
    (tmp_path / "some.file").write_text("?")
    shell.press("darner import som\t\r")
    shell.see(r"some\.file is no export")
    shell.press("darner queues --sort wai\t--interval nan\r")
    shell.see("not a valid number of seconds")


def test_fish_shows_all_of_a_help_that_has_commas():
    assert 'string split --max 1 ","' in run_darner("completion", "fish").stdout
