"""Fixtures for all tests."""

import pytest
from running import Server, Wire, running


@pytest.fixture
def server(tmp_path) -> Server:
    with running(tmp_path / "data") as server:
        yield server


@pytest.fixture
def wire(server) -> Wire:
    wire = server.connect()
    yield wire
    wire.close()
