"""Tests on an event loop, and servers on it that fail in the middle."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

TIMEOUT_S = 30


def on_loop(scenario: Callable[..., Coroutine]) -> Callable[..., None]:
    """Make a test of a coroutine function."""

    @functools.wraps(scenario)
    def test(*args, **kwargs) -> None:
        asyncio.run(asyncio.wait_for(scenario(*args, **kwargs), TIMEOUT_S))

    return test


async def until(happens: Callable[[], Awaitable[object]]) -> None:
    """Wait until what `happens()` tells is true."""
    while not await happens():  # noqa: ASYNC110  # it happens in another process
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def listening(serve: Callable[..., Coroutine]) -> AsyncIterator[int]:
    """Listen on a port; `serve(reader, writer)` has each connection, which ends with it."""
    serving: set[asyncio.Task] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await serve(reader, writer)
        writer.transport.abort()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=1 << 22)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving)


class Cutter:
    """Stands between clients and a server, and cuts connections when a reply is about to pass.

    `cuts` is how many replies are still to be lost; `accepted` is the number of connections so far.
    """

    def __init__(self, port: int) -> None:
        self._server_port = port
        self.cuts = 0
        self.accepted = 0

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        """Listen on a port."""
        async with listening(self._serve) as port:
            yield port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        requests = asyncio.create_task(self._pass(reader, to_server))
        try:
            while reply := await from_server.read(1 << 16):
                if self.cuts:
                    self.cuts -= 1
                    return
                writer.write(reply)
        finally:
            requests.cancel()
            to_server.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
        writer.close()
