"""The queues of a cluster in this process, without a server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from darner.config.settings import QueueSettings
from darner.environment.environment import Environment
from darner.errors import NotReadyError
from darner.jetstream.link import Link
from darner.jetstream.store import ClusterStore
from darner.wire.unattended import done

Result = TypeVar("Result")


@contextlib.asynccontextmanager
async def opened(link: Link) -> AsyncIterator[ClusterStore]:
    """Yield the queues of a cluster of one node."""
    made = ClusterStore(
        link, None, Environment(lambda: 0, lambda work: work()), lambda *_: QueueSettings(),
        replicas=1, durability="replicated", ack_wait_ms=2000, grace_ms=0,
    )  # fmt: skip
    await made.open()
    try:
        yield made
    finally:
        await made.close()


class _Waiting:
    """A client that waits for the answer to its set."""

    def __init__(self) -> None:
        self.error: object = None
        self.released = asyncio.Event()

    def hold(self) -> None:
        """Do nothing: `released` is waited for."""

    def fail(self, _: int, error: object) -> None:
        self.error = error

    def release(self) -> None:
        self.released.set()


async def stored(to: ClusterStore, name: bytes, data: bytes = b"item") -> object:
    """Set an item, and return the error once it is answered; None if it is stored."""
    client = _Waiting()
    to.set(name, data, 0, 0, 0, None, sync=False).hold(client, 0)
    await client.released.wait()
    return client.error


async def taken(steps) -> None:
    """Take all of these steps."""
    for step in steps:
        if step is not None and not step.is_done:
            await done(step)


async def answered(ask: Callable[[], Result]) -> Result:
    """Return what `ask` does once the cluster has answered."""
    while True:
        try:
            return ask()
        except NotReadyError as error:
            await done(error.journal)
