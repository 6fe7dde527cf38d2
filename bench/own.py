"""A darner that a bench starts itself, on data of its own."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
from servers import Server

DARNER = str(Path(sys.executable).with_name("darner"))
START_S = 600.0  # a start reads what is in the log
STOP_S = 60.0
POLL_S = 0.001


class Darner:
    """The console script in one life after another, its data and its log in a directory."""

    def __init__(self, directory: Path, configuration: str) -> None:
        self.data, self._log, config = (directory / name for name in ("data", "log", "darner.toml"))
        config.write_text(configuration)
        self._command = [DARNER, "--config", str(config), "--data", str(self.data), "--port", "0"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        """Start it; returns when it listens. Raises ClickException if it does not come to that."""
        # A file, and not a pipe: a server that nobody reads must not come to stand.
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stderr=log)
        deadline = time.monotonic() + START_S
        while not (said := re.search(r"event=data .*\n", self.log())):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise click.ClickException(f"{DARNER} does not start on {self.data}:\n{self.log()}")
            time.sleep(POLL_S)
        self.found = said[0].strip()
        listening = re.search(r"event=listening host=\S+ port=(\d+)", self.log())
        assert listening
        return Server("darner", "127.0.0.1", int(listening[1]), self._process.pid)

    def log(self) -> str:
        """Return what this life has logged."""
        return self._log.read_text(errors="replace")

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End it by SIGTERM, so that nothing is left to recover."""
        assert self._process
        self._process.terminate()
        if self._process.wait(STOP_S):
            raise click.ClickException(f"{DARNER} did not end cleanly:\n{self.log()}")

    def kill(self) -> None:
        """End it by SIGKILL."""
        assert self._process
        self._process.kill()
        self._process.wait()

    def discard(self) -> None:
        """Remove its data; if it runs, it ends."""
        if self.running:
            self.kill()
        shutil.rmtree(self.data, ignore_errors=True)

    def evict(self) -> None:
        """Have the kernel forget its files. It must have ended: what is mapped stays in memory."""
        for file in (path for path in self.data.rglob("*") if path.is_file()):
            opened = os.open(file, os.O_RDONLY)
            try:
                os.fsync(opened)  # what is not yet on the disk would stay in memory
                os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(opened)


@contextlib.contextmanager
def darner(directory: Path | None, configuration: str = "") -> Iterator[Darner]:
    """Give a darner that is not started yet, in a new directory in this one; then end it and remove that."""
    with tempfile.TemporaryDirectory(prefix="darner-bench-", dir=directory) as own:
        one = Darner(Path(own), configuration)
        try:
            yield one
        finally:
            one.discard()


data_in = click.option(
    "--data-in",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory for the server's data.  [default: that of temporary files]",
)
