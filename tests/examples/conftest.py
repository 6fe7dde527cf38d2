"""The examples run as processes, against a server of their own."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import Program, program, ran
from running import Server, configured, running

from load.servers import free_port

EXAMPLES = "examples"


class Examples:
    """Runs examples against one server, which has the same port in each of its lives."""

    def __init__(self, server: Server, started: contextlib.ExitStack) -> None:
        self.server = server
        self._started = started

    @property
    def environment(self) -> dict[str, str]:
        return {"DARNER_URL": f"darner://127.0.0.1:{self.server.port}"}

    def start(self, script: str, *words: object, **environment: str) -> Program:
        """Start a script of examples/, to be ended with the test."""
        environment |= self.environment
        return self._started.enter_context(program(f"{EXAMPLES}/{script}", *words, **environment))

    def run(self, script: str, *words: object) -> str:
        """Run a script of examples/ to its end."""
        return ran(f"{EXAMPLES}/{script}", *words, **self.environment)


@pytest.fixture
def examples(tmp_path) -> Iterator[Examples]:
    """Examples, and a server without a configuration, as `make run` starts it."""
    with running(tmp_path / "data", "--port", str(free_port())) as server, contextlib.ExitStack() as started:
        yield Examples(server, started)


@pytest.fixture
def configured_examples(tmp_path) -> Iterator[Examples]:
    """Examples, and a server with their configuration."""
    text = Path(EXAMPLES, "darner.toml").read_text()
    with configured(tmp_path, text) as server, contextlib.ExitStack() as started:
        yield Examples(server, started)
