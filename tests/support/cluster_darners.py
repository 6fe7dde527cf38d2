"""Darners before a cluster of nats-servers, each with the same port in all of its lives."""

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from nats_cluster import NatsCluster
from reserved_ports import reserved_ports
from running import DARNER, Wire, until

# The accounts of the nodes: darners look at the system account whether the nodes sync.
ACCOUNTS = """
accounts {
    APP: {jetstream: enabled, users: [{user: app, password: app}]}
    SYS: {users: [{user: sys, password: sys}]}
}
system_account: SYS
no_auth_user: app
"""


class ClusterDarner:
    """One darner, which keeps its queues in the cluster."""

    def __init__(self, directory: Path, name: str, port: int, cluster: NatsCluster, ack_wait_s: int) -> None:
        self.name = name
        self.port = port
        self.log = directory / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        places = ",".join(url.removeprefix("nats://") for url in cluster.urls)
        self._store = f"nats://{places}"
        self._configuration = directory / f"{name}.toml"
        self._configuration.write_text(
            f'store_system = "nats://sys:sys@{places}"\nreplicas = {len(cluster.nodes)}\n'
            f'ack_wait = "{ack_wait_s}s"\n'
        )

    @property
    def is_running(self) -> bool:
        """Whether its process lives, paused or not."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it, and wait until it serves; again if it ends, as a service does."""

        def serves() -> bool:
            if not self.is_running:
                self._run()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return True
            return False

        until(serves)

    def _run(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [DARNER, "--store", self._store, "--port", str(self.port), "-c", str(self._configuration)],
                stderr=log,
            )
        time.sleep(0.2)

    def connect(self) -> Wire:
        """Return a connection."""
        return Wire(self.port)

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it by SIGTERM, and wait for that."""
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        assert self.process
        self.process.send_signal(number)
        self.process.wait(30)

    def pause(self, seconds: float) -> None:
        """Stop it by SIGSTOP for so long."""
        assert self.process
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def cluster_darners(
    directory: Path, cluster: NatsCluster, count: int, ack_wait_s: int
) -> Iterator[list[ClusterDarner]]:
    """Start darners before a cluster, which was made with ACCOUNTS, and kill them at the end."""
    with reserved_ports(count) as ports:
        darners = [
            ClusterDarner(directory, f"d{number}", port, cluster, ack_wait_s)
            for number, port in enumerate(ports, 1)
        ]
        try:
            for darner in darners:
                darner.start()
            yield darners
        finally:
            for darner in darners:
                if darner.is_running:
                    darner.kill()
