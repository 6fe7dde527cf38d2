"""Dramatiq's own tests of behaviour pass with our broker in place of the stub's."""

import shutil
from pathlib import Path

import pytest
from published_suites import failed, published, run_suite

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "brokers.md").read_text()
# The modules whose tests use the stub, with how many tests there are at least; and what is of other brokers.
MODULES = {
    "actors": 30,
    "broker": 5,
    "callbacks": 4,
    "composition": 15,
    "generic_actors": 3,
    "messages": 3,
    "results": 15,
    "stub_broker": 8,
    "worker": 4,
}
# Those that are run each time; the others take a minute together.
QUICK = {"broker", "callbacks", "messages", "stub_broker", "worker"}
OF_OTHERS = {
    "test_broker_uses_rabbitmq_if_not_set",
    "test_can_instantiate_brokers_without_middleware",
    "test_messages_without_actor_not_crashing_lookup_options",
}


@pytest.mark.parametrize(
    "module", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in MODULES]
)
def test_every_test_that_dramatiq_has_for_its_stub_passes(module, server, tmp_path):
    suite = tmp_path / "suite"
    suite.mkdir()
    shutil.copy(published("dramatiq", "tests") / "tests" / f"test_{module}.py", suite)
    # beside theirs, whose relative imports want a package
    for name in ("conftest.py", "common.py"):
        shutil.copy(HERE / f"suite_{name}", suite / name)
    (suite / "__init__.py").touch()
    others = ("-k", " and ".join(f"not {name}" for name in OF_OTHERS))
    url = f"darner://127.0.0.1:{server.port}"
    outcomes = run_suite(tmp_path, tmp_path, suite, *others, seconds=110, DARNER_URL=url)
    assert failed(outcomes) == {}
    assert len(outcomes) >= MODULES[module]


def test_the_page_names_each_test_that_is_left_out():
    assert {name for name in OF_OTHERS if f"`{name}`" not in PAGE} == set()
