"""Run the blocks of a page, in their order, in one shell: `page_runner.py PAGE` in an empty directory.

It runs in namespaces of its own (`ALONE`): what stands on the page is run as it stands there. The server has
its usual port, /etc may be written to, and /opt, /srv, /var/backups, /var/lib and /var/spool are empty. The
first block that does not do what the page says ends it with status 1 and a line that names it.
"""

import calendar
import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shutil
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
import tomllib
from pathlib import Path
from typing import TextIO

import yaml
from blocks import ROOT, Block, blocks
from running import Wire

# Its network, mounts and processes are its own: the port is free, and all that it starts ends with it.
ALONE = ("unshare", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
BIN = Path(sys.executable).parent
# how long a block may take
SECONDS = float(os.environ.get("DARNER_PAGE_SECONDS", "60"))
# a comment behind a statement tells what that prints
PRINTED = re.compile(r"\S +# (.*)")
# a command, which goes on behind a backslash, and what it prints
TYPED = re.compile(r"^\$ ((?:.*\\\n)*.*\n)((?:(?!\$ ).*\n)*)", re.MULTILINE)
# what a shell says of a process in the background that was killed: at a prompt it is not in the output
# The month in the time of a line in a log, in a pattern.
MONTH = re.compile(rf"^(?:{'|'.join(calendar.month_abbr[1:])}) (?=\+\\d\+ )")
KILLED = re.compile(r"^\./\.block-\d+: line \d+: +\d+ (?:Killed|Terminated) .*\n", re.MULTILINE)
EMPTY = ("/opt", "/srv", "/var/backups", "/var/lib", "/var/spool")
# names of other machines, all of which are this one
HOSTS = "127.0.0.1 localhost queues.example.org queues-a.example.org queues-b.example.org\n::1 localhost\n"
FUNCTIONS = """
stop_last() {
    kill %%
    wait %% || true
}

start_server() {
    : >server.log  # what an earlier server said is gone before this one is looked for
    set -m
    darner --data "${data:-data}" "$@" 2>server.log &
    set +m
    server=$!
    until grep -q event=data server.log; do
        if ! kill -0 $server; then cat server.log; return 1; fi
        sleep 0.05
    done
}
"""


class DiffersError(Exception):
    """A block does not do what the page says."""


def pattern(expected: str, figures_differ: bool) -> re.Pattern[str]:
    """Return what an output must match: `…` is any text, and by itself any number of lines."""
    lines = []
    for line in expected.splitlines():
        if line.strip() == "…":
            lines.append(r"(?:.*\n)*?")
            continue
        text = re.escape(line.rstrip()).replace("…", ".*")
        if figures_differ:
            text = re.sub(r"(?:\\ )+", " +", re.sub(r"\d+", r"\\d+", text))
            text = MONTH.sub("[A-Z][a-z]{2} ", text)
        lines.append(text + r"[ \t]*\n")
    return re.compile("".join(lines))


def compare(expected: str, output: str, figures_differ: bool) -> None:
    """Raise DiffersError if the output is not what the page says."""
    if not is_as_expected(expected, output, figures_differ):
        raise DiffersError(f"the page says\n{expected}\nbut it is\n{output}")


def is_as_expected(expected: str, output: str, figures_differ: bool) -> bool:
    """Return whether an output is what the page says."""
    output = output.replace("\r\n", "\n").strip("\n")
    return bool(pattern(expected.strip("\n"), figures_differ).fullmatch(f"{output}\n" if output else ""))


class Terminal:
    """A terminal that commands write to, and that somebody reads."""

    def __init__(self) -> None:
        self._ours, self._theirs = pty.openpty()
        attributes = termios.tcgetattr(self._theirs)
        attributes[1] &= ~termios.OPOST
        termios.tcsetattr(self._theirs, termios.TCSANOW, attributes)
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
        self.path = os.ttyname(self._theirs)
        self._output = b""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(self._ours, 65536):
                self._output += data

    def output(self) -> str:
        """Return what was written so far."""
        mark = b"\x00ends here\x00"
        os.write(self._theirs, mark)
        deadline = time.monotonic() + SECONDS
        while mark not in self._output and time.monotonic() < deadline:
            time.sleep(0.005)
        self._output = self._output.replace(mark, b"")
        return self._output.decode()


class Shell:
    """A bash that goes on from block to block: what one exports, the next one has."""

    def __init__(self) -> None:
        reads, writes = os.pipe()
        environment = os.environ | {
            "PATH": f"{BIN}:{os.environ['PATH']}", "NO_COLOR": "1", "HOME": str(Path.cwd()),
            "C_FORCE_ROOT": "1", "PYTHONUNBUFFERED": "1",
            "PIP_ROOT_USER_ACTION": "ignore", "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }  # fmt: skip
        for name in ("DARNER_URL", "VIRTUAL_ENV"):
            environment.pop(name, None)
        self._process = subprocess.Popen(
            ["bash", "--norc", "--noprofile"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL,
            pass_fds=[writes], env=environment, text=True,
        )  # fmt: skip
        os.close(writes)
        self._statuses = os.fdopen(reads)
        self._status_fd = writes
        self._number = 0
        self.run(FUNCTIONS)

    def run(self, script: str, *, stops: bool = True, terminal: bool = False) -> str:
        """Run a script and return its output, with errors; with `stops`, DiffersError if a command fails."""
        self._number += 1
        file = Path(f".block-{self._number}")
        file.write_text(script)
        screen = Terminal() if terminal else None
        target = screen.path if screen else f"{file}.output"
        self._say(
            f"set {'-e' if stops else '+e'}; . ./{file} >{target} 2>&1 </dev/null; set +e;"
            f" echo done >&{self._status_fd}"
        )
        ended = self._ends()
        output = screen.output() if screen else Path(target).read_text(errors="replace")
        output = KILLED.sub("", output)
        if not ended:
            raise DiffersError(f"failed, or did not end within {SECONDS:.0f} s:\n{script}\n{output}")
        return output

    def _say(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()

    def _ends(self) -> bool:
        """Wait for the end of what was said; returns whether it came."""
        timer = threading.Timer(SECONDS, self._process.kill)
        timer.start()
        try:
            # background processes hold the pipe open: so this ends with the shell, too
            while self._process.poll() is None:
                if _readable(self._statuses, 0.05):
                    return self._statuses.readline() == "done\n"
            return _readable(self._statuses, 0) and self._statuses.readline() == "done\n"
        finally:
            timer.cancel()


def _readable(stream: TextIO, seconds: float) -> bool:
    return bool(select.select([stream], [], [], seconds)[0])


class Runner:
    """Runs the blocks of one page."""

    def __init__(self) -> None:
        self.shell = Shell()
        self.output = ""
        self.wires: dict[str, Wire] = {}
        self._number = 0

    def run(self, block: Block) -> None:
        """Run one block; DiffersError if it does not do what the page says."""
        handler = getattr(self, f"_{block.kind.replace(' ', '_')}", None)
        if handler is None:
            raise DiffersError("nothing is known to do with it")
        handler(block)

    def _file_of(self, block: Block, suffix: str) -> Path:
        """Save a block as the file that its mark or its first line names, or as one of no name."""
        self._number += 1
        named = re.match(r"# ([\w/.-]+\.\w+)\n", block.text)
        name = block.marks.get("file") or (named[1] if named else f"block{self._number}{suffix}")
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
        return path

    def _not_run(self, block: Block) -> None:
        pass

    def _run_by(self, block: Block) -> None:
        pass

    def _directive(self, block: Block) -> None:
        pass

    def _setup(self, block: Block) -> None:
        self.output = self.shell.run(block.text)

    _shell = _setup

    def _file(self, block: Block) -> None:
        path = self._file_of(block, "")
        if path.suffix == ".py":
            compile(block.text, path, "exec")
        elif path.suffix == ".toml":
            tomllib.loads(block.text)

    def _background(self, block: Block) -> None:
        """Start it, and wait until it says what the mark has, or on a terminal what the page shows."""
        self._number += 1
        if block.language == "console":
            command, _, expected = block.text.removeprefix("$ ").partition("\n")
            screen = Terminal()
            self.shell.run(f"set -m\n{command} >{screen.path} 2>&1 &\nset +m\n")
            deadline = time.monotonic() + SECONDS
            figures_differ = "figures differ" in block.marks
            while not is_as_expected(expected, text := screen.output(), figures_differ):
                if time.monotonic() > deadline:
                    compare(expected, text, figures_differ)
                time.sleep(0.02)
            return
        said = Path(f".background-{self._number}")
        script = f"python {self._file_of(block, '.py')}" if block.language == "python" else block.text
        self.shell.run(f"set -m\n{{\n{script}\n}} >{said} 2>&1 &\nset +m\n")
        deadline = time.monotonic() + SECONDS
        while block.marks["background"] not in (text := said.read_text() if said.exists() else ""):
            if time.monotonic() > deadline:
                raise DiffersError(f"does not say {block.marks['background']!r}:\n{text}")
            time.sleep(0.02)
        self.output = text

    def _output(self, block: Block) -> None:
        compare(block.text, self.output, "figures differ" in block.marks)

    def _console(self, block: Block) -> None:
        """Type each command behind a `$`, and compare what comes."""
        for command, expected in re.findall(
            r"^\$ ((?:.*\\\n)*.*\n)((?:(?!\$ ).*\n)*)", block.text, re.MULTILINE
        ):
            self.output = self.shell.run(command, stops=False, terminal="terminal" in block.marks)
            compare(expected, self.output, "figures differ" in block.marks)

    def _python(self, block: Block) -> None:
        path = self._file_of(block, ".py")
        self.output = self.shell.run(f"python {path}\n")
        lines = [line.strip() for line in block.text.splitlines() if "print(" in line]
        comments = [found[1] for line in lines if (found := PRINTED.search(line))]
        if comments and [comment.partition(": ")[0] for comment in comments] != self.output.splitlines():
            raise DiffersError(f"the comments say {comments}, but it prints\n{self.output}")

    def _toml(self, block: Block) -> None:
        path = self._file_of(block, ".toml")
        self.shell.run(f"darner --check-config --config {path}\n")

    def _json(self, block: Block) -> None:
        json.loads(block.text)

    def _unit(self, block: Block) -> None:
        """Have systemd look at a unit."""
        named = re.search(r"^# (/etc/systemd/system/\S+)$", block.text, re.MULTILINE)
        if named is None:
            raise DiffersError("its first line must say which file it is")
        path = Path(named[1])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
        unit = path
        if path.parent.suffix == ".d":
            unit = path.parent.with_suffix("")
            shutil.copy(ROOT / "adm" / unit.name, unit)
        if shutil.which("systemd-analyze"):
            self.shell.run(f"systemd-analyze verify --man=no {unit}\n")

    def _yaml(self, block: Block) -> None:
        loaded = yaml.safe_load(block.text)
        if "scrape_configs" in loaded and shutil.which("promtool"):
            path = self._file_of(block, ".yml")
            self.shell.run(f"promtool check config {path}\n")

    def _promql(self, block: Block) -> None:
        if shutil.which("promtool"):
            rule = {"groups": [{"name": "page", "rules": [{"record": "page", "expr": block.text}]}]}
            Path("rule.yml").write_text(json.dumps(rule))
            self.shell.run("promtool check rules rule.yml\n")

    def _bench(self, block: Block) -> None:
        """Look whether each bench is there and has the options; what they measure takes minutes to hours."""
        text = block.text.replace("$BENCH", "bench")
        shared = [*ROOT.glob("bench/suite/*.py"), *ROOT.glob("bench/load/*.py")]
        for words in re.findall(r"bench/([\w/]+\.py.*)$", text, re.MULTILINE):
            program, *options = words.partition(" #")[0].split()
            source = "".join(path.read_text() for path in (ROOT / "bench" / program, *shared))
            for option in options:
                if option.startswith("-") and not re.search(f'"-*{option.lstrip("-")}"', source):
                    raise DiffersError(f"{program} has no option {option}")

    def _session(self, block: Block) -> None:
        """Say what the client says, and compare what the server replies. `C2` and `S2` are a second client.

        `…` in a reply stands for any text, and by itself for any number of lines. `S: (closes)` is the end.
        """
        for who, line in re.findall(r"^([CS]\d?):(?: (.*))?$", block.text, re.MULTILINE):
            wire = self.wires.get(who[1:])
            if wire is None:
                wire = self.wires[who[1:]] = Wire(22133)
                wire.socket.settimeout(10)
            if who[0] == "C":
                wire.send(f"{line}\r\n".encode())
            elif line == "(closes)":
                if not wire.closed():
                    raise DiffersError("the server does not close the connection")
                del self.wires[who[1:]]
            elif line == "(nothing)":
                if not wire.silent():
                    raise DiffersError(f"the server says {wire.line()!r}, where it should say nothing")
            elif line == "…":
                self._skips = True
            else:
                self._expect(wire, line)

    _skips = False

    def _expect(self, wire: Wire, line: str) -> None:
        expected = re.compile(re.escape(line).replace("…", ".*") + "\r\n")
        skips, self._skips = self._skips, False
        while True:
            try:
                said = wire.line().decode(errors="replace")
            except TimeoutError:
                said = "(nothing)"
            if expected.fullmatch(said):
                return
            if not skips or not said or said == "(nothing)":
                raise DiffersError(f"the server should say {line!r}, and says {said!r}")


def bring_loopback_up() -> None:
    """Bring the loopback device of this network namespace up."""
    with socket.socket() as any_socket:
        # SIOCSIFFLAGS, IFF_UP
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 1))


def unreadable(directory: str, names: list[str]) -> list[str]:
    """Return the files of a directory that this user may not read."""
    return [name for name in names if not os.access(Path(directory, name), os.R_OK)]


def main(page: Path) -> None:
    """Run all blocks of a page."""
    bring_loopback_up()
    for directory in EMPTY:
        if Path(directory).is_dir():
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", directory], check=True)
    etc = Path("/opt/etc")
    shutil.copytree("/etc", etc, symlinks=True, ignore=unreadable)
    (etc / "hosts").write_text(HOSTS)
    (etc / "darner").mkdir()
    subprocess.run(["mount", "--bind", etc, "/etc"], check=True)
    Path("/opt/darner").mkdir()
    Path("/opt/darner/bin").symlink_to(BIN)
    runner = Runner()
    for block in blocks(page):
        try:
            runner.run(block)
        except (DiffersError, ValueError, SyntaxError, OSError, EOFError) as error:
            sys.exit(f"{block.where}: {block.kind}: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
