"""docs/celery.md and docs/celery-redis.md: what stands there runs."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from redis_servers import redis_port
from running import running, until

from load.servers import free_port

celery = pytest.importorskip("celery")
workers = pytest.importorskip("load.celery_workers")

DOCS = Path(__file__).parents[2] / "docs"
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", (DOCS / "celery.md").read_text(), re.MULTILINE | re.DOTALL)
PAGE = (DOCS / "celery-redis.md").read_text()
MOVE = PAGE.split("\n## Move a project in five minutes\n")[1].split("\n## ")[0]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", MOVE, re.MULTILINE | re.DOTALL)
OLD, NEW = (text for language, text in BLOCKS if language == "python")
INSTALL, TRY = (text for language, text in BLOCKS if language == "sh")

pytestmark = pytest.mark.timeout(240)


@contextlib.contextmanager
def shell(script, directory, **environment):
    """Run a script in a shell with the venv's programs; in the end kill what it left in the background."""
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "C_FORCE_ROOT": "1"}
    output = directory / "output"
    with output.open("wb") as written:
        process = subprocess.Popen(
            ["sh", "-ec", script], cwd=directory, env=os.environ | environment, start_new_session=True,
            stdout=written, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        assert process.wait(120) == 0, output.read_text()
        yield output.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def listens(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def test_a_project_moves_by_the_commands_of_the_page(tmp_path):
    port = free_port()
    start = INSTALL.partition("\n")[2].replace("darner", f"darner --port {port}")
    with redis_port() as redis:
        ports = {"22133": str(port), "6379": str(redis)}
        assert "6379/0" in OLD
        tasks = re.sub("22133|6379", lambda found: ports[found[0]], NEW)
        (tmp_path / "tasks.py").write_text(tasks)
        with shell(start, tmp_path):
            until(lambda: listens(port))
            with shell(TRY, tmp_path, DARNER_URL=f"127.0.0.1:{port}") as output:
                assert "\n5\n" in output
                assert "OK" in output
                assert "celery" in output


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(1, len(SNIPPETS) + 1))
def test_a_snippet_of_the_page_of_the_transport_runs(snippet, standing, tmp_path):
    # what the page has besides is about an app that is there
    script = f"from celery import Celery\napp = Celery()\n{snippet}"
    script = script.replace("darner://localhost", f"darner://localhost:{standing.port}")
    connects = "\napp.connection().connect()\n" if "broker_url" in snippet else ""
    done = subprocess.run(
        [sys.executable, "-c", script + connects], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("backend", ["rpc://", "file://{directory}", "db+sqlite:///{directory}/results.db"])
def test_results_come_over_each_backend_of_the_page_that_needs_no_other_server(backend, tmp_path):
    if backend.startswith("db"):
        pytest.importorskip("sqlalchemy")
    url = backend.format(directory=tmp_path)
    with (
        running(tmp_path / "data") as server,
        workers.project(tmp_path, f"darner://127.0.0.1:{server.port}", result_backend=url) as jobs,
    ):
        jobs.start_worker("worker")
        assert jobs.app.signature("job", (7,)).delay().get(timeout=120) == 7
