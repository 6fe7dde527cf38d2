"""Real workers of Celery: each kind of pool, remote control, and a worker that is killed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from celery import Celery
from running import WAIT_S, configured, until

PROJECT = """
import os, time
from pathlib import Path
from celery import Celery
{imports}
app = Celery("project", broker={broker!r}, set_as_current=False)
app.conf.broker_transport = {transport!r}
app.conf.task_ignore_result = True
app.conf.task_acks_late = True
app.conf.worker_prefetch_multiplier = 25
app.conf.broker_connection_retry_on_startup = True

@app.task(name="note")
def note(word, seconds=0):
    with open("began", "a") as file:
        file.write(f"{{word}}\\n")
    time.sleep(seconds)
    with open("notes", "a") as file:
        file.write(f"{{word}}\\n")
"""
BY_PATH = "darner.kombu:Transport"


@pytest.fixture
def broker(tmp_path):
    (tmp_path / "server").mkdir()
    with configured(tmp_path / "server", "") as server:
        yield server


class Project:
    """A project of Celery in a directory of its own."""

    def __init__(self, directory: Path, broker: str, transport: str | None = BY_PATH) -> None:
        self.directory = directory
        imports = "" if transport else "import darner.kombu"
        code = PROJECT.format(broker=broker, transport=transport, imports=imports)
        (directory / "project.py").write_text(code)
        self.app = Celery("sender", broker=broker, set_as_current=False)
        self.app.conf.broker_transport = transport
        self.app.conf.task_ignore_result = True
        self.workers = []

    def words(self, name):
        path = self.directory / name
        return path.read_text().split() if path.exists() else []

    def celery(self, *words):
        return [sys.executable, "-m", "celery", "-A", "project", *words]

    def work(self, *options):
        """Start a worker; wait until it takes tasks."""
        with (self.directory / "log").open("a") as log:
            words = self.celery("worker", "-l", "info", *options)
            worker = subprocess.Popen(words, cwd=self.directory, stdout=log, stderr=log, env=self.environment)
        self.workers.append(worker)
        return worker

    def asked(self, *words):
        return subprocess.run(
            self.celery(*words), cwd=self.directory, env=self.environment, capture_output=True, text=True,
            timeout=WAIT_S, check=False,
        ).stdout  # fmt: skip

    @property
    def environment(self):
        return os.environ | {"C_FORCE_ROOT": "1", "PYTHONWARNINGS": "ignore"}

    def send(self, *words, **options):
        for word in words:
            self.app.send_task("note", [str(word)], options)

    def close(self):
        for worker in self.workers:
            if worker.poll() is None:
                worker.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    worker.wait(10)
                worker.kill()
                worker.wait()
        self.app.close()


@pytest.fixture
def project(tmp_path, broker):
    with contextlib.closing(Project(tmp_path, f"darner://127.0.0.1:{broker.port}")) as project:
        yield project


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_a_worker_does_all_tasks_and_is_asked_by_remote_control(project, broker, pool):
    project.work("-P", pool, "-c", "2")
    project.send(*range(50))
    until(lambda: len(project.words("notes")) == 50)
    assert sorted(map(int, project.words("notes"))) == list(range(50))
    assert "pong" in project.asked("inspect", "ping")
    until(lambda: not broker.stat("queue_celery_open_transactions"))
    assert not broker.stat("queue_celery_items")


def test_the_aliases_do_as_well_as_the_path(tmp_path, broker):
    url = f"darner://127.0.0.1:{broker.port}"
    with contextlib.closing(Project(tmp_path, url, transport=None)) as project:
        project.work("-P", "solo")
        project.send("x")
        until(lambda: project.words("notes") == ["x"])


def test_the_tasks_of_a_killed_worker_come_back_at_once_though_its_children_run_on(project, broker):
    worker = project.work("-c", "4")
    project.send(*range(100), seconds=30)
    until(lambda: broker.stat("queue_celery_open_transactions") == 100 and len(project.words("began")) == 4)
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(worker.pid)], capture_output=True, text=True, check=True
    ).stdout.split()  # fmt: skip
    worker.kill()
    worker.wait()
    try:
        begun = time.monotonic()
        until(lambda: broker.stat("queue_celery_items") == 100)
        assert time.monotonic() - begun < 1
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)


def test_a_worker_goes_on_by_itself_when_the_server_was_killed(tmp_path):
    path = tmp_path / "s"
    with (
        configured(tmp_path, "", "--socket", str(path)) as server,
        contextlib.closing(Project(tmp_path, f"unix://{path}")) as project,
    ):
        project.work("-P", "solo")
        project.send(*range(5), seconds=0.1)
        until(lambda: len(project.words("notes")) > 2)
        server.restart()
        project.send(5)
        until(lambda: set(project.words("notes")) == set("012345"))
