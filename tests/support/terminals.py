"""A program at a pseudo-terminal: what it shows, and keys for it."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from pathlib import Path

from running import WAIT_S


class Terminal:
    """A program at a pseudo-terminal of 80 columns and 24 lines, unless there are to be more."""

    def __init__(
        self, *words: str, lines: int = 24, directory: Path | None = None, **environment: str
    ) -> None:
        self._own, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, 80, 0, 0))
        self.before = termios.tcgetattr(self.theirs)
        self.process = subprocess.Popen(
            words,
            stdin=self.theirs, stdout=self.theirs, stderr=self.theirs, cwd=directory,
            env=os.environ | {"TERM": "xterm"} | environment,
            # else Ctrl-C sends no signal
            preexec_fn=lambda: os.login_tty(0),  # noqa: PLW1509
        )  # fmt: skip
        self.text = ""

    def press(self, keys: str) -> None:
        os.write(self._own, keys.encode())

    def see(self, pattern: str) -> None:
        """Read what is shown until it has this; what was shown before is forgotten."""
        deadline = time.monotonic() + WAIT_S
        self.text = ""
        while not re.search(pattern, self.text):
            assert time.monotonic() < deadline, self.text[-3000:]
            if select.select([self._own], [], [], 0.5)[0]:
                self.text += os.read(self._own, 65536).decode(errors="replace")

    def end(self) -> int:
        """Read until the process ends; return its exit status."""
        while self.process.poll() is None:
            if select.select([self._own], [], [], 0.1)[0]:
                self.text += os.read(self._own, 65536).decode()
        while select.select([self._own], [], [], 0)[0]:
            self.text += os.read(self._own, 65536).decode()
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._own)
        os.close(self.theirs)
