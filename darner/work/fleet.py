"""All servers that a worker takes items from, asked in turn.

With one server, the wait for an item takes it: so each goes to the worker that has waited longest. That
keeps a place free for what may come. With several servers it would be a place for each, so there the wait is
a `peek`, which takes nothing, and the item goes to the first worker that asks for it then.
"""

import asyncio
from collections.abc import Sequence

from darner.work.connection import Delivery
from darner.work.source import Source


class Fleet:
    """The servers."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = list(sources)
        self._takes = len(self._sources) == 1
        self._waits: dict[Source, asyncio.Task[Delivery | None]] = {}
        # who has it waits for all: else each would need a connection to wait on
        self._turn = asyncio.Lock()
        self._is_stopped = False

    async def next(self) -> Delivery | None:
        """Reserve the next item; wait until there is one. None once it was stopped. Raises WorkerError if a
        server refuses."""
        found = await self._take()
        if found is not None or self._is_stopped:
            return found
        async with self._turn:
            while found is None and not self._is_stopped:
                found = await self._take() or await self._wait()
        return found

    def stop(self) -> None:
        """Have `next` return: nothing more is taken but what was asked for already."""
        self._is_stopped = True
        for wait in self._waits.values():
            wait.cancel()

    def close(self) -> None:
        """Close all connections: what they hold goes back."""
        for source in self._sources:
            source.close()

    async def _take(self) -> Delivery | None:
        self._sources.append(self._sources.pop(0))  # another begins each time
        for source in tuple(self._sources):
            if self._is_stopped:
                break
            found = await source.take()
            if found is not None:
                return found
        return None

    async def _wait(self) -> Delivery | None:
        """Wait until a server has an item; return it if the wait has taken it."""
        if self._is_stopped:
            return None
        for source in self._sources:
            if source not in self._waits:
                self._waits[source] = asyncio.create_task(source.wait(takes=self._takes))
        await asyncio.wait(self._waits.values(), return_when=asyncio.FIRST_COMPLETED)
        found = None
        for source, wait in list(self._waits.items()):
            if wait.done():
                del self._waits[source]
                if not wait.cancelled():
                    found = wait.result()
        return found
