"""`put_many` of the async client: many sets in a pipeline, of each of which it is known what became of it."""

from collections.abc import Sequence

from darner.client.async_connection import time_in
from darner.client.async_pool import AsyncPool
from darner.client.async_servers import AsyncServers
from darner.client.errors import ConnectionLostError
from darner.client.puts import AtHome, Outcomes, Run, by_home
from darner.client.windows import Request


async def put_anywhere(servers: AsyncServers, requests: Sequence[Request]) -> Outcomes:
    """Store on the next server that can be reached; return for each request None, or what became of it."""
    tour = servers.tour()
    for pool in tour:
        with tour:
            return await _put_on(servers, pool, requests)
    return [tour.error] * len(requests)


async def put_at_home(servers: AsyncServers, requests: Sequence[Request], ids: Sequence[bytes]) -> Outcomes:
    """Store each on the server of its id, again while connections are lost; return as `put_anywhere`."""
    outcomes: Outcomes = [None] * len(requests)
    for home in by_home(servers, requests, ids, outcomes):
        with home:
            await _put_again(servers, home)
    return outcomes


async def _put_again(servers: AsyncServers, home: AtHome[AsyncPool]) -> None:
    async def put(_left: float) -> None:
        home.took(await _put_on(servers, home.pool, home.left()))

    await servers.again(put)


async def _put_on(servers: AsyncServers, pool: AsyncPool, requests: Sequence[Request]) -> Outcomes:
    """Store on one server; return for each request None, or what became of it.

    The timeout is for each window. ConnectionFailedError if the server cannot be reached.
    """
    deadline = time_in(servers.timeout)
    connection = await pool.take(deadline)
    run = Run(requests)
    try:
        while not run.is_over:
            window = run.window()
            if window is None:
                run.took(await connection.read(deadline))
            else:
                deadline = time_in(servers.timeout)
                await connection.send(window[1], window[0], deadline)
    except ConnectionLostError as error:
        run.lost(error)
    finally:
        # closes it if it has still to reply
        pool.give(connection)
    return run.outcomes()
