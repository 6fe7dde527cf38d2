"""TaskIQ's own workers on a real server: what is run, in which order, and what a kill leaves."""

import asyncio
import contextlib
import subprocess
import sys
import time

import pytest
from library_workers import assert_next_worker_takes_over, library_working
from running import configured, running, until
from taskiq.exceptions import SendTaskError
from taskiq.kicker import AsyncKicker

from darner.client import Client
from darner.taskiq import DarnerBroker

TASKS = '''
import asyncio
import os
import time
from pathlib import Path

from taskiq import SmartRetryMiddleware

from darner.taskiq import DarnerBroker

broker = DarnerBroker("URL").with_middlewares(SmartRetryMiddleware(default_delay=0.2))


def say(*words):
    os.write(1, " ".join(map(str, words)).encode() + b"\\n")


@broker.task
async def echo(value):
    say(value)


@broker.task
def echo_sync(value):
    say(value)


@broker.task
async def hold(value):
    """End once there is the file `go`."""
    say("began", value)
    while not Path("go").exists():
        await asyncio.sleep(0.01)
    say("ended", value)


@broker.task
async def fail(value):
    say("tried", value)
    raise ValueError("that is nothing")
'''


class Project:
    """A program that sends tasks, and the workers that it starts."""

    def __init__(self, directory, url, stack):
        self.directory = directory
        self.url = url
        self._stack = stack
        (directory / "tasks.py").write_text(TASKS.replace("URL", url))

    def kick(self, task, *arguments, **labels):
        """Send a task for each argument."""

        async def send():
            broker = DarnerBroker(self.url)
            await broker.startup()
            for argument in arguments:
                await AsyncKicker(f"tasks:{task}", broker, dict(labels)).kiq(argument)
            await broker.shutdown()

        asyncio.run(send())

    def worker(self, *options, name="worker"):
        words = ("worker", "tasks:broker", "--workers=1", *options)
        return self._stack.enter_context(library_working(self.directory, "taskiq", *words, name=name))


@pytest.fixture
def project(tmp_path, server):
    with contextlib.ExitStack() as stack:
        yield Project(tmp_path, f"darner://127.0.0.1:{server.port}", stack)


def is_empty(server):
    with Client(f"127.0.0.1:{server.port}") as client:
        return not any(
            each.items + each.delayed_items + each.open_transactions for each in client.queues().values()
        )


def test_tasks_run_and_are_removed_once_they_have(server, project):
    project.kick("echo", *range(20))
    project.kick("echo_sync", *range(20, 40))
    it = project.worker()
    assert sorted(map(int, it.said(40))) == list(range(40))
    until(lambda: is_empty(server))


def test_a_task_of_a_higher_priority_goes_first(project):
    for priority in ({}, {"priority": 5}, {"priority": 9}, {"priority": 99}, {"priority": -1}):
        project.kick("echo", str(priority.get("priority")), **priority)
    assert project.worker("--max-async-tasks=1").said(5) == ["9", "99", "5", "None", "-1"]


def test_a_task_that_is_delayed_runs_after_so_many_seconds(project):
    it = project.worker()
    began = time.monotonic()
    project.kick("echo", "late", delay=1)
    project.kick("echo", "early", delay=0.3)
    assert it.said(2) == ["early", "late"]
    assert time.monotonic() - began >= 1


def test_a_task_that_fails_is_removed_and_one_that_is_to_be_retried_is_sent_again(server, project):
    it = project.worker()
    project.kick("fail", "once")
    assert it.said(1) == ["tried once"]
    until(lambda: is_empty(server))
    project.kick("fail", "thrice", retry_on_error=True, max_retries=3)
    assert it.said(3) == ["tried thrice"] * 3
    until(lambda: is_empty(server))


def test_the_tasks_of_a_worker_that_is_killed_run_on_the_next_one_within_a_second(server, project):
    project.kick("hold", "a", "b", "c")
    assert_next_worker_takes_over(server, b"taskiq", project)


def test_workers_go_on_by_themselves_when_the_server_was_killed_and_nothing_is_lost(tmp_path):
    path = tmp_path / "darner.sock"
    with (
        running(tmp_path / "data", "--socket", str(path)) as server,
        contextlib.ExitStack() as stack,
    ):
        project = Project(tmp_path, f"darner+unix://{path}", stack)
        project.kick("hold", "held")
        it = project.worker()
        assert it.said(1) == ["began held"]
        project.kick("echo", "delayed", delay=1)
        server.kill()
        it.wait_for_log("the server does not serve")
        with pytest.raises(SendTaskError):
            project.kick("echo", "refused")
        server.start()
        # at least once: the first time has not ended yet
        assert sorted(it.said(2)) == ["began held", "delayed"]
        it.wait_for_log("the server serves again")
        (tmp_path / "go").touch()
        assert it.said(2) == ["ended held", "ended held"]
        it.wait_for_log("the item went back")
        until(lambda: is_empty(server))


def test_a_worker_that_is_told_to_end_finishes_what_it_runs_and_takes_nothing_more(server, project):
    project.kick("hold", "running")
    it = project.worker()
    assert it.said(1) == ["began running"]
    until(lambda: server.waiters(b"taskiq") == 1)
    it.process.terminate()
    until(lambda: server.waiters(b"taskiq") == 0)
    project.kick("echo", "later")
    (project.directory / "go").touch()
    assert it.said(1) == ["ended running"]
    it.ended()
    until(lambda: server.stat("queue_taskiq_open_transactions") == 0)
    assert server.stat("queue_taskiq_items") == 1
    assert project.worker(name="next").said(1) == ["later"]


def test_a_task_that_is_never_acknowledged_goes_back_when_its_worker_ends(server, project):
    project.kick("echo", "x", ack_type="manual")
    it = project.worker()
    assert it.said(1) == ["x"]
    assert server.stat("queue_taskiq_open_transactions") == 1
    it.process.terminate()
    it.ended()
    until(lambda: server.stat("queue_taskiq_items") == 1)


@pytest.mark.parametrize(("settings", "least", "most"), [("", 1, 4), ("deny = ['configure']\n", 30, 33)])
def test_tasks_at_a_time_share_a_connection_unless_the_server_denies_it(tmp_path, settings, least, most):
    with configured(tmp_path, settings) as server, contextlib.ExitStack() as stack:
        project = Project(tmp_path, f"darner://127.0.0.1:{server.port}", stack)
        project.kick("hold", *range(30))
        project.worker().said(30)
        assert least <= server.stat("curr_connections") <= most


def test_a_fleet_is_served_and_one_of_its_servers_may_be_down(tmp_path):
    with (
        running(tmp_path / "one") as one,
        running(tmp_path / "two") as two,
        contextlib.ExitStack() as stack,
    ):
        urls = [f"darner://127.0.0.1:{each.port}" for each in (one, two)]
        project = Project(tmp_path, urls[0], stack)
        tasks = tmp_path / "tasks.py"
        tasks.write_text(tasks.read_text().replace(f'"{urls[0]}"', repr(urls)))
        project.url = urls
        project.kick("echo", *range(10))
        assert one.stat("queue_taskiq_items") == two.stat("queue_taskiq_items") == 5
        it = project.worker()
        assert sorted(map(int, it.said(10))) == list(range(10))
        one.kill()
        project.kick("echo", "a", "b")
        assert sorted(it.said(2)) == ["a", "b"]


def test_a_task_that_comes_as_its_worker_ends_is_given_to_it_or_goes_back(server):
    url = f"darner://127.0.0.1:{server.port}"

    async def end(client, steps):
        """Cancel the wait for a task so many steps of the loop after one has come."""
        broker = DarnerBroker(url, max_priority=0)
        listening = broker.listen()
        waiting = asyncio.create_task(anext(listening))
        await asyncio.to_thread(until, lambda: server.waiters(b"taskiq"))
        client.put("taskiq", b"x")
        until(lambda: server.stat("queue_taskiq_open_transactions"))  # the loop has not read it yet
        for _ in range(steps):
            await asyncio.sleep(0)
        waiting.cancel()
        try:
            await waiting
        except asyncio.CancelledError:
            assert await asyncio.to_thread(client.get, "taskiq", 5) == b"x"
            await broker.shutdown()
            return "back"
        await broker.shutdown()
        assert await asyncio.to_thread(client.get, "taskiq", 5) == b"x"
        return "given"

    with Client(url) as client:
        assert {asyncio.run(end(client, steps)) for steps in range(8)} == {"back", "given"}


def test_the_import_says_what_is_missing():
    code = "import sys\nsys.modules['taskiq'] = None\nimport darner.taskiq"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.endswith(
        "ModuleNotFoundError: darner.taskiq needs TaskIQ: pip install 'darner[taskiq]'\n"
    )
