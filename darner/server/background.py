"""Background tasks of the server, which must not end by an error."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

log = structlog.get_logger()

# How long, in seconds, after an error a task is begun again.
RESTART_S = 1.0


async def keep_running(task: Callable[[], Awaitable[None]]) -> None:
    """Run a task until cancelled: one that ends by an error of ours is begun again. An error that repeats is
    logged once."""
    logged = ""
    while True:
        try:
            await task()
        except Exception as error:
            if repr(error) != logged:
                logged = repr(error)
                log.exception(
                    "internal error in what the server does by itself; begun again", chore=task.__name__
                )
        await asyncio.sleep(RESTART_S)
