"""Fixtures for the page."""

import pytest
from pages import Page, showing


@pytest.fixture(scope="package")
def page(standing) -> Page:
    """A page that shows `standing`, and may change it."""
    pytest.importorskip("aiohttp", reason="the page needs aiohttp: pip install darner[web]")
    with showing(f"127.0.0.1:{standing.port}", "--allow-changes") as page:
        yield page
