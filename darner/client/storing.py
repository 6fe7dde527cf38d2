"""`put_many` of the sync client: many sets in a pipeline, of each of which it is known what became of it."""

import time
from collections.abc import Sequence

from darner.client.errors import ConnectionLostError
from darner.client.pool import Pool
from darner.client.puts import AtHome, Outcomes, Run, by_home, check_refused
from darner.client.servers import Servers
from darner.client.windows import Request


def put_anywhere(servers: Servers, requests: Sequence[Request]) -> Outcomes:
    """Store on the next server that can be reached; return for each request None, or what became of it."""
    tour = servers.tour()
    for pool in tour:
        with tour:
            return check_refused(put_on(pool, requests, servers.timeout))
    return [tour.error] * len(requests)


def put_at_home(servers: Servers, requests: Sequence[Request], ids: Sequence[bytes]) -> Outcomes:
    """Store each on the server of its id, again while connections are lost; return as `put_anywhere`."""
    outcomes: Outcomes = [None] * len(requests)
    for home in by_home(servers, requests, ids, outcomes):
        with home:
            _put_again(servers, home)
    return outcomes


def _put_again(servers: Servers, home: AtHome[Pool]) -> None:
    servers.again(lambda _: home.took(put_on(home.pool, home.left(), servers.timeout)))


def put_on(pool: Pool, requests: Sequence[Request], timeout: float) -> Outcomes:
    """Store on one server; return for each request None, or what became of it.

    `timeout` is for each window. ConnectionFailedError if the server cannot be reached.
    """
    deadline = time.monotonic() + timeout
    connection = pool.take(deadline)
    run = Run(requests)
    try:
        while not run.is_over:
            window = run.window()
            if window is None:
                run.took(*connection.read(run.unread, deadline))
            else:
                deadline = time.monotonic() + timeout
                connection.send(window[1], deadline)
    except ConnectionLostError as error:
        pool.discard(connection)
        run.lost(error)
    except BaseException:
        pool.discard(connection)
        raise
    else:
        pool.give(connection)
    return run.outcomes()
