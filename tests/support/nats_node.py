"""One nats-server with JetStream on loopback: its configuration, process and monitoring port."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NATS_SERVER = shutil.which(
    "nats-server", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
)
# A stopped node accepts what it does not answer.
ANSWER_S = 2.0
CLUSTER = "darner-test"


class NatsNode:
    """A nats-server with the same name, ports and directory in each of its lives.

    `routes` are the ports at which it finds the other nodes; empty for a node alone. `extra` is added to its
    configuration file, in NATS's own syntax.
    """

    def __init__(
        self, directory: Path, name: str, ports: Sequence[int], routes: Sequence[int], *,
        advertised: int | None = None, sync_interval: str | None = None, extra: str = "",
    ) -> None:  # fmt: skip
        self.name = name
        self.directory = directory
        self.store = directory / "store"
        self.log = directory / "log"
        self.port, self.monitoring_port, self.route_port = ports
        self.binary = NATS_SERVER
        self.process: subprocess.Popen[bytes] | None = None
        self.is_paused = False
        self._was_ended = False
        self._configuration = directory / "nats.conf"
        directory.mkdir(parents=True)
        sync = f"sync_interval: {sync_interval}" if sync_interval else ""
        text = f"""\
server_name: {name}
listen: 127.0.0.1:{self.port}
http: 127.0.0.1:{self.monitoring_port}
jetstream {{ store_dir: {json.dumps(str(self.store))}, max_mem: 1G, max_file: 8G, {sync} }}
"""
        if routes:
            urls = ", ".join(f"nats-route://127.0.0.1:{port}" for port in routes)
            advertise = f"advertise: 127.0.0.1:{advertised}" if advertised else ""
            text += f"""\
cluster {{
    name: {CLUSTER}
    listen: 127.0.0.1:{self.route_port}
    routes: [{urls}]
    {advertise}
}}
"""
        self._configuration.write_text(text + extra)

    @property
    def url(self) -> str:
        """What a client connects to."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        """Whether its process lives, paused or not."""
        return self.process is not None and self.process.poll() is None

    @property
    def answers(self) -> bool:
        """Whether it can answer: its process lives and is not paused."""
        return self.is_running and not self.is_paused

    def start(self) -> None:
        """Start the process; it is not waited for."""
        assert not self.is_running
        assert self.binary
        self._was_ended = False
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [self.binary, "-c", str(self._configuration)], stderr=log, stdout=log
            )

    def kill(self) -> None:
        """End it by SIGKILL, also while it is paused."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it by SIGTERM, and wait for that."""
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        assert self.process
        self._was_ended = True
        self.process.send_signal(number)
        self.process.wait(30)
        self.is_paused = False

    def pause(self) -> None:
        """Stop it by SIGSTOP: its connections stay, and nothing answers."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)
        self.is_paused = True

    def resume(self) -> None:
        """Let it go on by SIGCONT."""
        assert self.process
        self.process.send_signal(signal.SIGCONT)
        self.is_paused = False

    def ask(self, path: str) -> Any:
        """Return what the monitoring port says at this path; None while it gives no good answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.monitoring_port, timeout=ANSWER_S)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
            if response.status == http.client.OK:
                return json.loads(body)
        return None

    @property
    def is_healthy(self) -> bool:
        """Whether JetStream serves here, with a meta leader and every stream and consumer up to date."""
        return self.ask("/healthz") is not None

    def check(self) -> None:
        """Fail with the end of its log if the process has ended by itself."""
        if self.process is not None and not self._was_ended and self.process.poll() is not None:
            raise AssertionError(f"{self.name} has ended:\n{self.log.read_text()[-4000:]}")

    def copy_disk(self, copy: Path) -> None:
        """Copy what it has on its disk; while it runs, it is paused for that."""
        was_answering = self.answers
        if was_answering:
            self.pause()
        try:
            shutil.copytree(self.store, copy)
        finally:
            if was_answering:
                self.resume()

    def restore_disk(self, copy: Path) -> None:
        """Put such a copy in place of what it has on its disk; it must have ended."""
        assert not self.is_running
        shutil.rmtree(self.store)
        shutil.copytree(copy, self.store)

    def lose_disk(self) -> None:
        """Delete what it has on its disk; it must have ended."""
        assert not self.is_running
        shutil.rmtree(self.store)
