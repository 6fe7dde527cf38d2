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

from load.servers import Server

DARNER = str(Path(sys.executable).with_name("darner"))
START_S = 600.0  # a start reads the log
STOP_S = 60.0
POLL_S = 0.001


class OwnServer:
    """The console script in one life after another; `directory` has its log and, by default, its data.

    With port 0 each life has another port.
    """

    def __init__(
        self, directory: Path, configuration: str = "", data: Path | None = None, port: int = 0
    ) -> None:
        self.data = data or directory / "data"
        directory.mkdir(parents=True, exist_ok=True)
        self._log, config = directory / "log", directory / "darner.toml"
        config.write_text(configuration)
        self._command = [DARNER, "--config", str(config), "--data", str(self.data), "--port", str(port)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        """Start the server and return when it listens; ClickException if it does not."""
        # A file and no pipe: a server must not wait for somebody to read its log.
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stderr=log)
        deadline = time.monotonic() + START_S
        while not (found := re.search(r"event=\"?data\b.*\n", self.log())):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise click.ClickException(f"{DARNER} does not start on {self.data}:\n{self.log()}")
            time.sleep(POLL_S)
        self.found = found[0].strip()
        listening = re.search(r"event=listening host=\S+ port=(\d+)", self.log())
        assert listening
        return Server("darner", "127.0.0.1", int(listening[1]), self._process.pid)

    def log(self) -> str:
        """Return the log of this life."""
        return self._log.read_text(errors="replace")

    @property
    def running(self) -> bool:
        """Return whether the server runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End the server by SIGTERM, so that nothing is left to recover."""
        assert self._process
        self._process.terminate()
        if self._process.wait(STOP_S):
            raise click.ClickException(f"{DARNER} did not end cleanly:\n{self.log()}")

    def kill(self) -> None:
        """End the server by SIGKILL."""
        assert self._process
        self._process.kill()
        self._process.wait()

    def discard(self) -> None:
        """End the server if it runs, and delete its data."""
        if self.running:
            self.kill()
        shutil.rmtree(self.data, ignore_errors=True)

    def evict(self) -> None:
        """Drop the data from the page cache. The server must have ended, as mapped pages stay in memory."""
        for file in (path for path in self.data.rglob("*") if path.is_file()):
            opened = os.open(file, os.O_RDONLY)
            try:
                os.fsync(opened)  # dirty pages stay in memory, too
                os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(opened)


@contextlib.contextmanager
def own_server(directory: Path | None, configuration: str = "") -> Iterator[OwnServer]:
    """Yield a server, not started yet, in a new directory inside this one; then end it and delete that."""
    with tempfile.TemporaryDirectory(prefix="darner-bench-", dir=directory) as own:
        one = OwnServer(Path(own), configuration)
        try:
            yield one
        finally:
            one.discard()
