"""Celery's own integration tests, with darner as the broker and with Redis: darner passes what Redis passes.

The backend of results is Redis for both, since most of these tests want one.
"""

import contextlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from published_suites import PASSED, failed, published, run_suite
from redis_servers import redis_port
from running import running

PAGE = Path(__file__).parents[2] / "docs" / "celery-redis.md"
# Those that use a broker and no service besides: others test result backends, logs and memory.
MODULES = ("test_inspect", "test_worker", "test_tasks", "test_group_chains", "test_beat", "test_canvas")
# Celery's own CI sets this: some tests look at the log.
LOG_LEVEL = {"WORKER_LOGLEVEL": "INFO", "C_FORCE_ROOT": "1"}


@pytest.fixture(scope="module")
def suite() -> Path:
    pytest.importorskip("pydantic")
    return published("celery")


def run_with(broker, suite, scratch):
    """Run these modules of Celery's tests with a broker, and a Redis for results."""
    scratch.mkdir()
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(redis_port())
        url = f"redis://127.0.0.1:{port}/1"
        if broker == "darner":
            url = f"darner://127.0.0.1:{stack.enter_context(running(scratch / 'data')).port}"
        return run_suite(
            suite, scratch, "-p", "celery.contrib.pytest", "--timeout", "300", "-k", "not django",
            *(suite / "t" / "integration" / f"{module}.py" for module in MODULES), seconds=3500,
            TEST_BROKER=url, TEST_BACKEND=f"redis://127.0.0.1:{port}/0", REDIS_PORT=str(port), **LOG_LEVEL,
        )  # fmt: skip


def run_both(suite, tmp_path):
    """Run them with both brokers at once; return what became of each test with darner, and with Redis."""
    with ThreadPoolExecutor(2) as threads:
        runs = [threads.submit(run_with, broker, suite, tmp_path / broker) for broker in ("darner", "redis")]
        return [run.result() for run in runs]


def assert_as_good(darner, redis):
    """Fail if darner does not pass a test that Redis passes, or the page names not one that fails on both."""
    passed = {name for name, one in redis.items() if one.word == PASSED}
    assert {name: said for name, said in failed(darner).items() if name in passed} == {}
    on_the_page = set(re.findall(r"^\| `(test_[^`]+)` \|", PAGE.read_text(), re.MULTILINE))
    assert {name.rpartition("::")[2].partition("[")[0] for name in failed(darner)} <= on_the_page


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_darner_passes_what_redis_passes_of_all_tests(suite, tmp_path):
    darner, redis = run_both(suite, tmp_path)
    assert_as_good(darner, redis)
    assert sum(one.word == PASSED for one in darner.values()) > 200
