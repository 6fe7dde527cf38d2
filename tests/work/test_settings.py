"""The settings of a worker: what cannot be is an error before anything begins."""

import re
from pathlib import Path

import pytest

from darner.client.errors import BadRequestError
from darner.work import Retry, Worker, WorkerError, metrics
from darner.work.advice import max_attempts
from darner.work.command import work


def done(item):
    """Do nothing."""


async def done_async(item):
    """Do nothing."""


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"pool": "fibres"}, "pool is 'fibres', and must be threads, processes or asyncio"),
        ({"concurrency": 0}, "concurrency is 0, and must be a whole number from 1"),
        ({"max_jobs": 0}, "max_jobs is 0, and must be a whole number from 1"),
        ({"grace": -1.0}, "grace is -1.0, and must be a number of seconds from 0"),
        ({"first_pause": float("nan")}, "first_pause is nan, and must be a number of seconds from 0"),
        ({"longest_pause": float("inf")}, "longest_pause is inf, and must be a number of seconds from 0"),
    ],
)
def test_a_setting_that_cannot_be_is_an_error(wrong, error):
    with pytest.raises(WorkerError) as raised:
        Worker("127.0.0.1", done, queues=["work"], **wrong)
    assert str(raised.value) == error


@pytest.mark.parametrize(
    ("servers", "settings"),
    [
        ("ftp://127.0.0.1", {"queues": ["work"]}),
        ([], {"queues": ["work"]}),
        ("127.0.0.1", {"queues": []}),
        ("127.0.0.1", {"queues": ["work", "work"]}),
        ("127.0.0.1", {"queues": ["a b"]}),
        ("127.0.0.1", {"queues": ["work"], "codec": "yaml"}),
    ],
)
def test_servers_queues_and_codec_are_checked_as_in_the_client(servers, settings):
    with pytest.raises(BadRequestError):
        Worker(servers, done, **settings)


def test_only_the_pool_asyncio_runs_an_async_function_and_it_runs_no_other():
    with pytest.raises(WorkerError, match="it needs the pool asyncio, not threads"):
        Worker("127.0.0.1", done_async, queues=["work"]).run()
    with pytest.raises(WorkerError, match="is not async, as the pool asyncio needs it"):
        Worker("127.0.0.1", done, queues=["work"], pool="asyncio").run()


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf")])
def test_a_retry_is_asked_for_after_a_number_of_seconds(delay):
    with pytest.raises(ValueError, match="must be a number of seconds from 0"):
        Retry(delay)


def test_the_advice_reads_max_attempts_of_each_queue():
    lines = [b"queue 'a' {", b"  max_attempts=none", b"}", b"queue 'b' {", b"  max_attempts=5", b"}"]
    assert max_attempts(lines) == [None, 5]


def test_every_option_of_the_command_is_on_its_page():
    page = (Path(__file__).parents[2] / "docs" / "worker.md").read_text()
    options = {option for each in work.params for option in each.opts if option.startswith("--")}
    assert options
    assert {option for option in options if f"`{option}" not in page} == set()


def test_every_metric_of_the_worker_is_on_its_page():
    source = Path(metrics.__file__).read_text()
    page = (Path(__file__).parents[2] / "docs" / "worker.md").read_text()
    named = set(re.findall(r'"(darner_worker_\w+)"', source))
    assert named
    listed = re.findall(r"^\| `(darner_worker_\w+)`", page, re.MULTILINE)
    # the ending of a counter is added by prometheus_client
    assert {name.removesuffix("_total") for name in listed} == named
