"""One process that does the work itself: an event loop, connections, and threads or async functions."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, cast

import structlog

from darner.client import codecs, protocol, url
from darner.client.item import Item
from darner.work.advice import advise
from darner.work.connection import Connection, connect
from darner.work.consumer import Consumer, Runner
from darner.work.fleet import Fleet
from darner.work.jobs import Outcome
from darner.work.observer import Observer
from darner.work.settings import Settings
from darner.work.source import Source
from darner.work.stopping import Stop
from darner.work.threads import JobThread

log = structlog.get_logger()


async def work(
    settings: Settings, function: Callable[[Any], object], observer: Observer, stop: Stop, *, advises: bool
) -> bool:
    """Work until it is stopped; return whether all that was in progress was finished.

    With `advises` say what is wrong with the settings of the queues. Raises WorkerError if a server refuses.
    """
    runners: list[Runner]
    if settings.pool == "asyncio":
        runners = [_async_runner(function)] * settings.concurrency
        threads = []
    else:
        threads = [JobThread(function) for _ in range(settings.concurrency)]
        runners = list(threads)
    consumer = Consumer(settings, runners, Fleet(_sources(settings, advises=advises)), observer)
    try:
        with stop.told_to(consumer.stop):
            return await consumer.run()
    finally:
        for thread in threads:
            thread.end()


def _sources(settings: Settings, *, advises: bool) -> list[Source]:
    keys = protocol.source_keys(settings.queues)
    codec = codecs.find(settings.codec)

    def connector(address: url.Address) -> Callable[[], Awaitable[Connection]]:
        is_first = True

        async def make() -> Connection:
            nonlocal is_first
            connection = await connect(address, keys, codec, settings.tls)
            if is_first and advises:
                log.info("connected", server=str(address))
                await advise(connection, settings.queues)
            is_first = False
            return connection

        return make

    return [
        Source(str(address), connector(address), settings.concurrency)
        for address in url.parse_all(settings.servers)
    ]


def _async_runner(function: Callable[[Any], object]) -> Runner:
    """Return what runs an async function on the loop."""

    async def run(item: Item) -> Outcome:
        try:
            await cast("Coroutine[Any, Any, object]", function(item))
        except asyncio.CancelledError as error:
            if cast("asyncio.Task[None]", asyncio.current_task()).cancelling():
                raise
            return error
        except BaseException as error:
            return error
        return None

    return run
