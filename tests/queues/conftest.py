"""Fixtures of queue logic."""

import pytest

from darner._records import ITEM_BYTES
from darner.queues import item_window


@pytest.fixture
def small(monkeypatch):
    """Hardly anything is held in memory."""
    monkeypatch.setattr(item_window, "WINDOW_BYTES", 2 * ITEM_BYTES)
    monkeypatch.setattr(item_window, "READ_ITEMS", 3)
    monkeypatch.setattr("darner.journal.live_ids.MAX_REMOVED", 2)
