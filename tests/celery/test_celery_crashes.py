"""Celery's tasks while workers and darner are killed, and over timers and restarts."""

import contextlib
import threading
import time
from collections import Counter

import pytest
from running import running, until
from unsound_servers import proxy

from darner.client import Client
from load.servers import free_port

celery = pytest.importorskip("celery")
workers = pytest.importorskip("load.celery_workers")

# A worker with a pool takes some seconds to start, on a busy machine many.
pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def broker(tmp_path):
    """A server with the same port in each of its lives."""
    with running(tmp_path / "data", "--port", str(free_port())) as server:
        yield server


@pytest.fixture
def jobs(tmp_path, broker):
    """A project whose tasks are acknowledged once they have ended."""
    with workers.project(tmp_path, url(broker), task_acks_late=True, worker_prefetch_multiplier=100) as jobs:
        yield jobs


def url(server):
    return f"darner://127.0.0.1:{server.port}"


def start_worker(jobs, name="worker", *options):
    """Start a worker, and wait until it is ready for tasks."""
    worker = jobs.start_worker(name, 1, "--loglevel", "INFO", *options)
    until(lambda: " ready." in worker.log, 120)
    return worker


def until_all_began(jobs, numbers):
    until(lambda: set(jobs.numbers()) >= set(numbers), 120)


def until_some_more(counted):
    """Wait until what is counted has grown by 20."""
    count = len(counted())
    until(lambda: len(counted()) > count + 20, 120)


class TestAWorkerThatIsKilled:
    @pytest.fixture
    def killed_at(self, jobs):
        """Have a worker hold 100 tasks and another one none, and kill the first; return when."""
        first = jobs.start_worker("first")
        for number in range(100):
            jobs.send(number, workers.GATE)
        until(jobs.numbers, 120)
        start_worker(jobs, "second")
        assert jobs.numbers() == [0]
        first.kill()
        killed_at = time.time()
        jobs.open_gate()
        until_all_began(jobs, range(100))
        return killed_at

    def test_leaves_its_tasks_to_another_one_and_only_what_had_begun_is_run_again(self, jobs, killed_at):
        assert Counter(jobs.numbers()) == Counter(range(100)) + Counter([0])

    @pytest.mark.alone
    def test_leaves_its_tasks_to_another_one_within_a_second(self, jobs, killed_at):
        assert jobs.entries()[1].at - killed_at < 1

    def test_does_not_hold_up_a_chord(self, tmp_path, broker):
        results = tmp_path / "results"
        results.mkdir()
        settings = {"result_backend": f"file://{results}", "result_chord_retry_interval": 0.1}
        with workers.project(tmp_path, url(broker), task_acks_late=True, **settings) as jobs:
            first = start_worker(jobs, "first")
            header = [jobs.app.signature("job", (number, workers.GATE)) for number in range(10)]
            celery.chord(header, app=jobs.app)(jobs.app.signature("total"))
            until(jobs.numbers, 60)
            first.kill()
            jobs.open_gate()
            start_worker(jobs, "second")
            until(lambda: jobs.numbers("total") == [sum(range(10))], 60)


class TestABrokerThatIsKilled:
    def test_loses_nothing_and_its_worker_goes_on_by_itself(self, jobs, broker):
        start_worker(jobs)
        sent, ends = [], threading.Event()

        def produce():
            while not ends.is_set():
                with contextlib.suppress(celery.exceptions.OperationalError):
                    jobs.send(len(sent))
                    sent.append(len(sent))

        producer = threading.Thread(target=produce)
        producer.start()
        try:
            for _ in range(3):
                until_some_more(jobs.numbers)
                until_some_more(lambda: sent)
                broker.kill()
                broker.start()
        finally:
            ends.set()
            producer.join(60)
        until_all_began(jobs, sent)
        # a task is run again if its acknowledgement was lost, or stored again if the reply was
        assert sum(Counter(jobs.numbers()).values()) - len(sent) <= 3 * 101

    def test_keeps_what_waits_without_a_worker(self, jobs, broker):
        for number in range(200):
            jobs.send(number)
        broker.kill()
        broker.start()
        start_worker(jobs)
        until_all_began(jobs, range(200))
        assert Counter(jobs.numbers()) == Counter(range(200))


@pytest.mark.long
def test_a_worker_whose_connections_go_silent_connects_again_by_itself(tmp_path, broker):
    options = {"broker_transport_options": {"reply_timeout": 2}}
    with proxy(broker.port) as between, workers.project(tmp_path, url(between), **options) as jobs:
        start_worker(jobs)
        jobs.send(0)
        until_all_began(jobs, [0])
        between.mute()
        jobs.send(1)  # the server gives it to a connection that it takes to be alive
        connections = between.connections
        until(lambda: between.connections > connections)
        jobs.send(2)
        until_all_began(jobs, [2])
        between.close()  # as the server's own keepalive would find
        until_all_began(jobs, [1])
        assert jobs.numbers() == [0, 2, 1]


class TestATaskThatOutlivesTimers:
    def test_runs_once_though_replies_are_due_sooner_and_the_server_closes_idle_connections(self, tmp_path):
        config = tmp_path / "darner.toml"
        config.write_text('idle_timeout = "4s"\n')
        options = {"task_acks_late": True, "broker_transport_options": {"reply_timeout": 1}}
        with (
            running(tmp_path / "data", "--config", str(config)) as server,
            workers.project(tmp_path, url(server), **options) as jobs,
        ):
            start_worker(jobs, "first")
            start_worker(jobs, "second")
            jobs.send(0, 9.0)
            jobs.send(1, 9.0)
            until(lambda: len(jobs.numbers("ended")) == 2, 60)
            jobs.send(2)
            until_all_began(jobs, [2])
            assert sorted(jobs.numbers()) == [0, 1, 2]


class TestACountdown:
    @pytest.fixture
    def patient(self, tmp_path, broker):
        """A project whose countdowns of a second and more wait in the server."""
        with workers.project(tmp_path, url(broker), broker_transport_options={"eta_as_delay": 1}) as jobs:
            yield jobs

    def test_goes_on_while_server_and_worker_are_down(self, patient, broker):
        worker = start_worker(patient, "first")
        due = time.time() + 3
        patient.send(0, countdown=3)
        worker.kill()
        broker.kill()
        broker.start()
        start_worker(patient, "second")
        until_all_began(patient, [0])
        assert patient.entries()[0].at >= due
        assert patient.numbers() == [0]

    def test_of_an_hour_is_kept_over_a_restart(self, patient, broker):
        start_worker(patient)
        patient.send(0, countdown=3600)
        patient.send(1)
        until_all_began(patient, [1])
        until(lambda: not broker.stat("queue_celery_open_transactions"))  # else it comes again
        broker.kill()
        broker.start()
        patient.send(2)
        until_all_began(patient, [2])
        with Client(f"127.0.0.1:{broker.port}") as client:
            assert client.queues()["celery"].delayed_items == 1
        assert patient.numbers() == [1, 2]

    def test_of_a_retry_waits_in_the_server_too(self, patient, broker):
        start_worker(patient)
        patient.app.send_task("retrying", (7, 2))
        with Client(f"127.0.0.1:{broker.port}") as client:
            until(lambda: patient.numbers() and client.queues()["celery"].delayed_items == 1)
        until(lambda: patient.numbers() == [7, 7])
        first, second = patient.entries()
        assert second.at - first.at >= 1.9


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_million_tasks_wait_in_bounded_memory_and_the_worker_begins_at_once(jobs, broker):
    for number in range(3):
        jobs.send(number)
    with Client(f"127.0.0.1:{broker.port}") as client:
        item = client.peek("celery")
        before = broker.resident_bytes
        for _ in range(1000):
            client.put_many("celery", [item.value] * 1000)
        assert client.queues()["celery"].items == 1_000_003
        assert broker.resident_bytes - before < 100 << 20
    start_worker(jobs)
    until(lambda: len(jobs.numbers()) > 1000, 120)
    assert broker.resident_bytes - before < 100 << 20
    assert jobs.numbers()[:3] == [0, 1, 2]
