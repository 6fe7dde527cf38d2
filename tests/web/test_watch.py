"""The watch over a server, without one."""

import asyncio
from unittest.mock import Mock

import pytest

pytest.importorskip("aiohttp", reason="the page needs aiohttp: pip install darner[web]")

from darner.web import watch
from darner.web.history import Histories


class Faulty:
    """Asks a server, and meets a fault of the page's own each time."""

    name = "127.0.0.1:22133"

    def __init__(self) -> None:
        self.asked_twice = asyncio.Event()
        self._count = 0

    async def ask(self, _: bytes) -> None:
        self._count += 1
        if self._count == 2:
            self.asked_twice.set()
        raise ZeroDivisionError


def test_goes_on_after_a_fault_in_a_poll_and_logs_it(monkeypatch):
    monkeypatch.setattr(watch, "PAUSE_S", 0)
    log = Mock()
    monkeypatch.setattr(watch, "log", log)

    async def run() -> None:
        asking = Faulty()
        it = watch.Watch(asking, Histories())
        it.look()
        task = asyncio.create_task(it.run())
        await asyncio.wait_for(asking.asked_twice.wait(), 30)
        task.cancel()

    asyncio.run(run())
    log.exception.assert_called_with("a poll failed by a fault of the page", server=Faulty.name)
