"""The cluster of examples/cluster: one command starts it, and its files fit together."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from nats_node import NATS_SERVER
from programs import Program, program
from running import DARNER, Wire, until

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "examples" / "cluster"
NAMES = ("n1", "n2", "n3", "darner1", "darner2")
needs_nats_server = pytest.mark.skipif(NATS_SERVER is None, reason="there is no nats-server")


class Running:
    """The command, and what it has said of each process."""

    def __init__(self, started: Program) -> None:
        self.program = started
        self.ports: dict[str, int] = {}
        self.pids: dict[str, int] = {}
        started.wait_for("logs, data", 60)
        for name, port, pid in re.findall(
            r"^(\w+) +127\.0\.0\.1:(\d+)  process (\d+)", started.output, re.MULTILINE
        ):
            self.ports[name], self.pids[name] = int(port), int(pid)


@needs_nats_server
def test_one_command_starts_nodes_and_darners_and_keeps_them_running(tmp_path):
    with program("examples/cluster/local.py", "--data", tmp_path / "cluster") as started:
        cluster = Running(started)
        assert set(NAMES) <= set(cluster.ports)
        one, other = Wire(cluster.ports["darner1"]), Wire(cluster.ports["darner2"])
        one.send(b"set work 0 0 5\r\nhello\r\n")
        assert one.line() == b"STORED\r\n"
        other.send(b"get work/t=10000\r\n")
        assert [other.line() for _ in range(3)] == [b"VALUE work/t=10000 0 5\r\n", b"hello\r\n", b"END\r\n"]
        one.close()
        other.close()
        if shutil.which("haproxy"):
            balanced = Wire(cluster.ports["haproxy"])
            balanced.send(b"version\r\n")
            assert balanced.line().startswith(b"VERSION ")
            balanced.close()
        os.kill(cluster.pids["n2"], signal.SIGKILL)
        replacement = int(re.search(r"process (\d+)", started.wait_for("n2 has ended"))[1])
        # the second one, while it ends them, must leave none behind
        started.process.send_signal(signal.SIGINT)
        until(lambda: not Path(f"/proc/{cluster.pids['darner2']}").exists())
        assert started.end(signal.SIGINT) == 0
    for pid in (*cluster.pids.values(), replacement):
        assert not Path(f"/proc/{pid}").exists()


@needs_nats_server
def test_nats_server_understands_its_configuration(tmp_path):
    subprocess.run([CLUSTER / "certificates", tmp_path, "n1"], check=True, timeout=60)
    environment = {
        "NATS_NAME": "n1",
        "NATS_LISTEN": "127.0.0.1:4222",
        "NATS_MONITORING": "127.0.0.1:8222",
        "NATS_CLUSTER_LISTEN": "127.0.0.1:6222",
        "NATS_ROUTES": "[nats-route://n1:6222]",
        "NATS_STORE": str(tmp_path / "store"),
        "NATS_CERT": str(tmp_path / "n1.pem"),
        "NATS_KEY": str(tmp_path / "n1.key"),
        "NATS_CA": str(tmp_path / "ca.pem"),
    }
    assert set(re.findall(r"\$([A-Z_]+)\b(?!\.)", _settings())) == set(environment)
    done = subprocess.run(
        [NATS_SERVER, "-t", "--config", CLUSTER / "nats.conf"], env=environment,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def _settings() -> str:
    """The configuration of a node without comments and quoted names."""
    text = (CLUSTER / "nats.conf").read_text()
    return re.sub(r'#.*|"[^"]*"', "", text)


def test_compose_gives_each_service_the_files_and_variables_that_it_wants():
    yaml = pytest.importorskip("yaml")
    composed = yaml.safe_load((CLUSTER / "compose.yaml").read_text())
    services = composed["services"]
    assert set(services) == {"n1", "n2", "n3", "darner1", "darner2", "balancer"}
    wanted = set(re.findall(r"\$([A-Z_]+)\b(?!\.)", _settings()))
    for name in ("n1", "n2", "n3"):
        assert set(services[name]["environment"]) == wanted
        assert services[name]["environment"]["NATS_NAME"] == name
        assert f"./certs/{name}.key:/etc/nats/node.key:ro" in services[name]["volumes"]
    for service in services.values():
        for mount in service["volumes"]:
            source = mount.partition(":")[0]
            if source.startswith("./certs/"):
                continue  # made by ./certificates
            assert (CLUSTER / source).is_file() if source.startswith(".") else source in composed["volumes"]
    balancer = services["balancer"]["environment"]
    assert set(balancer) == set(re.findall(r"\$\{(\w+)\}", (CLUSTER / "haproxy.cfg").read_text()))


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="there is no haproxy")
def test_haproxy_understands_its_configuration():
    environment = {"DARNER_BALANCER": "127.0.0.1:1", "DARNER_1": "127.0.0.1:2", "DARNER_2": "127.0.0.1:3"}
    done = subprocess.run(
        ["haproxy", "-c", "-f", CLUSTER / "haproxy.cfg"], env=os.environ | environment,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
def test_systemd_understands_the_units(tmp_path):
    node = (CLUSTER / "systemd" / "nats-server.service").read_text()
    (tmp_path / "nats-server.service").write_text(node.replace("/usr/local/bin/nats-server", "/bin/true"))
    darner = (ROOT / "adm" / "darner.service").read_text()
    (tmp_path / "darner.service").write_text(darner.replace("/opt/darner/bin/darner", DARNER))
    drop_in = (CLUSTER / "systemd" / "darner.conf").read_text()
    (tmp_path / "darner.service.d").mkdir()
    (tmp_path / "darner.service.d" / "cluster.conf").write_text(
        drop_in.replace("/opt/darner/bin/darner", DARNER)
    )
    units = [str(tmp_path / name) for name in ("nats-server.service", "darner.service")]
    done = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
