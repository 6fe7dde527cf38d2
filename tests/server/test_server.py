"""Periodic work of the server goes on after any error."""

import asyncio

from brokers import Data, log_to
from doubles import Loop, Silence, Transport

from darner.server import background
from darner.wire.clients import Clients
from darner.wire.commands.table import COMMANDS
from darner.wire.connection import Connection
from darner.wire.figures import LEVELDB_FIGURES


def test_a_chore_that_fails_is_begun_again_and_says_where_it_comes_from(monkeypatch):
    silence = Silence()
    monkeypatch.setattr(background, "log", silence)
    monkeypatch.setattr(background, "RESTART_S", 0)
    begun = []

    async def main():
        goes_on = asyncio.Event()

        async def chore():
            begun.append(len(begun))
            if len(begun) < 4:
                raise OverflowError("once" if len(begun) < 2 else "twice")
            goes_on.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(background.keep_running(chore))
        await goes_on.wait()
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
    event = "internal error in what the server does by itself; begun again"
    assert silence.lines == [(event, {"chore": "chore"})] * 2


def test_who_waits_for_a_queue_that_something_goes_wrong_with_is_told_and_goes_on(tmp_path, monkeypatch):
    log_to(monkeypatch, Silence())
    data = Data(tmp_path / "data")
    loop = Loop(lambda: data.now)
    clients = Clients(loop, data.broker, COMMANDS, figures=LEVELDB_FIGURES, dialect="memcached", keepalive=60)
    waiting = [Transport(loop, Connection(clients)) for _ in range(3)]
    requests = (b"get work/t=9000", b"monitor work 9", b"get work/cursor=billing/t=9000")
    for transport, request in zip(waiting, requests, strict=True):
        transport._protocol.data_received(request + b"\r\nset other 0 0 1\r\nx\r\n")
    assert [transport.sent for transport in waiting] == [b""] * 3
    data.broker.set_aside(data.broker.queue(b"work"), ValueError("?"))
    while loop.run():
        pass
    reply = b"SERVER_ERROR internal error: ValueError: ?\r\nSTORED\r\n"
    assert [transport.sent for transport in waiting] == [reply] * 3
    data.close()
