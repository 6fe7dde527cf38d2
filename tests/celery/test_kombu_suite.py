"""kombu's own tests of a transport pass against darner; Redis goes through them beside it."""

import shutil
from pathlib import Path

import pytest
from published_suites import failed, published, run_suite
from redis_servers import redis_port

MIXINS = Path(__file__).with_name("kombu_mixins.py")


def run_mixins(url, order, scratch, *words):
    """Run kombu's tests against the broker at `url`, whose priorities have this order."""
    suite = published("kombu")
    mixins = shutil.copy(MIXINS, scratch / "test_mixins.py")  # elsewhere, pytest would load our conftest.py
    return run_suite(suite, scratch, mixins, *words, seconds=230, BROKER_URL=url, PRIORITY_ORDER=order)


@pytest.mark.timeout(240)
def test_every_test_that_kombu_has_for_transports_passes(server, tmp_path):
    outcomes = run_mixins(f"darner://127.0.0.1:{server.port}", "asc", tmp_path)
    assert failed(outcomes) == {}
    assert len(outcomes) > 40


@pytest.mark.long
@pytest.mark.timeout(240)
def test_redis_passes_all_but_those_of_expiration_and_two_of_priorities(tmp_path):
    with redis_port() as port:
        outcomes = run_mixins(f"redis://127.0.0.1:{port}/0", "desc", tmp_path, "-k", "not BaseTimeToLive")
    assert set(failed(outcomes)) <= {
        "::TestBasePriority::test_publish_consume",
        "::TestBasePriority::test_publish_requeue_consume",
    }
