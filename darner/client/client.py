"""The sync client."""

import ssl
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

from darner.client import codecs, fetching, protocol, stats, storing, url
from darner.client.codecs import Codec
from darner.client.errors import BadRequestError, PutManyError
from darner.client.gets import OPEN, PEEK, Pages
from darner.client.item import Item
from darner.client.pool import Pool
from darner.client.protocol import DELETED, END, OK, STORED, Reply, Setting
from darner.client.puts import put_request, put_requests
from darner.client.reserving import Hold, Reservation, Reserving, ReservingMany
from darner.client.servers import Servers
from darner.client.stats import QueueStats, ServerStats

Queue = str | bytes
Queues = str | bytes | Sequence[str | bytes]


class Client:
    """A client of one darner server, or of a fleet of them::

        client = Client("darner://127.0.0.1:22133")
        client.put("work", b"hello")
        with client.reserve("work", timeout=5) as item:
            if item is not None:
                print(item.value)

    **Where.** `servers` is `"host:port"`, `"darner://user:password@host:port"`, `"darners://…"` for TLS,
    `"darner+unix:///path"`, or a list of these: a fleet. The client logs in if a URL has a user; a server
    without users would take that for an item of the queue `login`. Nothing is connected before it is needed.

    **Times** are in seconds. `timeout` is how long a request may take, connecting included; what a call waits
    for an item comes on top. `connect_timeout` bounds the connecting within it.

    **Values** are bytes. With `codec=` (`"json"`, `"pickle"`, or an object with `encode` and `decode`) they
    are what it takes.

    **Threads** may share a client, and a child may go on with its parent's after a fork. Each call takes a
    connection of a pool, of at most `pool_size` per server, and what it reserves stays on that connection. If
    all are in use, a call waits up to `timeout` for one, then raises NoFreeConnectionError.

    **Errors** are in `darner.client.errors`. A connection that is lost raises ConnectionLostError, for the
    request may have been done or not. It is asked again, for as long as `timeout` lasts, only where that can
    do no harm: the docstring of each method says so.

    **A fleet** is a loosely ordered cluster: each queue is on all servers, and order holds on each. Puts go
    round; a put with an `id` goes to the server that the id belongs to, so that a repetition meets the memory
    of the first. Fetches ask one server after the other, then wait at all. A server that cannot be reached is
    passed over, for half a second first and up to 30 if that goes on, and then tried again.
    """

    def __init__(
        self,
        servers: str | Iterable[str] = "darner://127.0.0.1",
        *,
        timeout: float = 10.0,
        connect_timeout: float = 5.0,
        codec: Codec | str | None = None,
        pool_size: int = 32,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`tls` is for `darners://`: by default the server's certificate is verified as that of its host.

        BadRequestError if an argument makes no sense.
        """
        self._codec = codecs.find(codec)
        self._servers = Servers(
            Pool,
            url.parse_all(servers),
            timeout=timeout,
            connect_timeout=connect_timeout,
            pool_size=pool_size,
            tls=tls,
        )

    @property
    def servers(self) -> Servers:
        """The servers, for tools that ask them what no method of a client does."""
        return self._servers

    def put(
        self,
        queue: Queue,
        value: Any,
        *,
        delay: float = 0,
        expire: float = 0,
        id: str | bytes | None = None,
        sync: bool = False,
    ) -> None:
        """Put a value on a queue. When this returns, it survives the death of the server.

        - `delay`: it is out of sight for so many seconds, then joins the end.
        - `expire`: it is dropped if nobody has fetched it within so many seconds; 0 is never.
        - `id`: 1 to 250 bytes without space, control character or `/`. If a value with this id was put on the
          queue within the server's `dedup_window`, nothing is stored: it is there already.
        - `sync`: it survives the death of the machine, too, for it is on the disk when this returns.

        Asked again if the connection is lost: only with an `id`. Without, after a ConnectionLostError the
        value may be stored or not. QueueFullError and ItemTooLargeError if the server refuses it.
        """
        request = put_request(self._codec, queue, value, delay=delay, expire=expire, id=id, sync=sync)
        if id is None:
            reply = self._servers.ask_one(request)
        else:
            reply = self._servers.ask_again(self._servers.home(protocol.item_id(id)), request)
        if reply.line != STORED:
            raise protocol.error_in(reply)

    def put_many(
        self,
        queue: Queue,
        values: Iterable[Any],
        *,
        delay: float = 0,
        expire: float = 0,
        ids: Iterable[str | bytes] | None = None,
        sync: bool = False,
    ) -> None:
        """Put many values on a queue, in order, in a pipeline: much faster than one by one.

        `ids` are one for each value; the rest is as for `put`. In a fleet all go to one server, or each to
        that of its id. `timeout` is for each part of some 100 values that is sent.

        PutManyError if not all are stored for sure; its `outcomes` say of each what became of it. Once one
        has failed, those not sent yet are not sent. Asked again if the connection is lost: only with `ids`.
        """
        requests, names = put_requests(
            self._codec, queue, values, delay=delay, expire=expire, ids=ids, sync=sync
        )
        if names is None:
            outcomes = storing.put_anywhere(self._servers, requests)
        else:
            outcomes = storing.put_at_home(self._servers, requests, names)
        if any(outcomes):
            raise PutManyError(outcomes)

    def get(self, queue: Queues, timeout: float = 0) -> Any:
        """Take the next item off a queue and return its value; None if there is none for `timeout` seconds.

        Of several queues, the most urgent first, one item is taken: from the first that has one. In a fleet
        that holds on each server.

        At most once: if this process dies, the item is lost. Use `reserve` for work that must be done. Not
        asked again if the connection is lost, for an item may be lost with it. CodecError has the bytes of an
        item that the codec cannot decode.
        """
        if type(queue) is str and not timeout and self._servers.only is not None:
            value = fetching.take(self._servers.only, protocol.plain_get(queue), self._servers.timeout)
        else:
            found = fetching.fetch(self._servers, protocol.source_keys(queue), b"", timeout)
            value = None
            if found is not None:
                found.pool.give(found.connection)
                value = found.value
        return None if value is None else codecs.decode(self._codec, value.data, value.flags)

    def peek(self, queue: Queues) -> Item | None:
        """Return the item at the head of a queue, or of the first of several that has one, and leave it
        there.

        None if there is none. Of a fleet, the first server that has one counts. Asked again if the connection
        is lost.
        """
        keys = protocol.source_keys(queue)
        request = protocol.get_line(keys, PEEK)
        tour = self._servers.tour(is_harmless=True)
        for pool in tour:
            with tour:
                reply = protocol.check(self._servers.ask_again(pool, request), END)
                if reply.values:
                    value = reply.values[0]
                    return Item(value, protocol.queue_of(value, keys), str(pool.address), self._codec)
        tour.check()
        return None

    def browse(self, queue: Queue, start: int = 1, page: int = 100) -> Iterator[Item]:
        """Give the items that wait in a queue, in order, and leave them there.

        - `start`: the least id. To go on later, start after the id of the last item.
        - `page`: how many items are asked for at once, at most.

        Of a fleet, those of one server after the other: `Item.server` says which. Asked again if the
        connection is lost.
        """
        key = protocol.source_key(queue)
        for pool in self._servers.pools:
            for value in fetching.browse(self._servers, pool, Pages(key, start, page)):
                yield Item(value, key, str(pool.address), self._codec)

    def reserve(self, queue: Queues, timeout: float = 0) -> Reserving:
        """Reserve the next item of a queue, or of the first of several that has one, in a `with` statement.

        The statement gives the reservation, or None if nothing came within `timeout` seconds. At its end the
        item is closed, which removes it; after an exception it is aborted, which puts it back at the head.
        `close`, `abort` and `retry` of the reservation do that before.

        At least once: if this process dies or the connection is lost, the item goes back, and is delivered
        again. In a fleet, if a connection is lost while fetching, the next server is asked, for nothing is
        lost by it.
        """
        return Reserving(partial(self._reserve, queue, 1, timeout))

    def reserve_many(self, queue: Queues, count: int, timeout: float = 0) -> ReservingMany:
        """Reserve up to `count` items, in a pipeline, in a `with` statement that gives a list of
        reservations.

        It waits up to `timeout` seconds for the first, then takes what is there: of one server, and no more
        than `max_open_reads` of the queue (1 by default), nor about 64 MiB. The list is empty if nothing
        came. At the statement's end those that have not ended are closed, after an exception aborted; all in
        one go.
        """
        if count < 1:
            raise BadRequestError("count is at least 1")
        return ReservingMany(partial(self._reserve, queue, count, timeout))

    def queues(self) -> dict[str, QueueStats]:
        """Return the figures of each queue by name; of a fleet, added up. Asked again as `stats`."""
        replies = self._figures(protocol.QUEUE_STATS)
        return stats.merged_queues([stats.queue_stats(reply.stats) for reply in replies])

    def stats(self) -> ServerStats:
        """Return the figures of the server; of a fleet, added up. Asked again if the connection is lost."""
        replies = self._figures(protocol.STATS)
        return stats.merged_servers([stats.server_stats(reply.stats) for reply in replies])

    def figures(self) -> tuple[ServerStats, dict[str, QueueStats]]:
        """Return what `stats` and `queues` do, at one request where the server lists its queues in `stats`.

        Asked again as `stats`.
        """
        found = [stats.both(reply.stats) for reply in self._figures(protocol.STATS)]
        servers, queues = zip(*found, strict=True)
        if all(queues):
            return stats.merged_servers(servers), stats.merged_queues(queues)
        return stats.merged_servers(servers), self.queues()

    def version(self) -> str:
        """Return the version of the server; of a fleet, the lowest. Asked again as `stats`."""
        servers = self._servers
        replies = servers.ask_all(lambda pool: servers.ask_again(pool, protocol.VERSION))
        return min(map(protocol.version_of, replies))

    def flush(self, queue: Queue) -> None:
        """Discard what waits in a queue, on all servers. Not asked again: what came since could go, too."""
        self._ask_all(protocol.flush_line(protocol.source_key(queue)), END)

    def delete(self, queue: Queue) -> None:
        """Drop a queue, or `<queue>/cursor=<name>`, on all servers. Not asked again, as `flush`."""
        self._ask_all(protocol.delete_line(protocol.source_key(queue)), DELETED)

    def configure(self, queue: Queue, **settings: Setting) -> None:
        """Change settings of a queue at run time, on all servers; the queue is made if it is not there.

            client.configure("reply.1", max_queue_age="1m", max_open_reads=100)

        Values are those of the configuration file: a time is text such as `"1m"`, or a number of
        milliseconds. None forgets a setting. What is set here is kept until the queue is deleted.

        BadRequestError if a value is wrong, or the configuration file has another: then nothing has changed.
        Asked again if the connection is lost.
        """
        request = protocol.configure_line(protocol.queue_key(queue), settings)
        servers = self._servers
        servers.ask_all(lambda pool: protocol.check(servers.ask_again(pool, request), OK))

    def status(self, status: str | None = None) -> str:
        """Set the status of all servers: "up", "readonly" or "quiescent"; or ask for it. Returns what it is
        then.

        If the servers of a fleet differ, that of the one which does least.
        """
        if status is not None:
            self._ask_all(protocol.status_line(status), END)
            return status
        return protocol.least_status(self._ask_all(protocol.status_line(None), *protocol.STATUS_REPLIES))

    def close(self) -> None:
        """Close all connections. Those that hold reservations are closed when these end."""
        self._servers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _reserve(self, queue: Queues, count: int, timeout: float) -> list[Reservation]:
        keys = protocol.source_keys(queue)
        first = fetching.fetch(self._servers, keys, OPEN, timeout)
        if first is None:
            return []
        try:
            values = [first.value]
            if count > 1:
                values = fetching.fetch_more(first, keys, count, self._servers.timeout)
            hold = Hold(first.pool, first.connection, self._servers.timeout)
            return [Reservation(value, protocol.queue_of(value, keys), hold, self._codec) for value in values]
        except BaseException:
            first.pool.discard(first.connection)
            raise

    def _figures(self, request: bytes) -> list[Reply]:
        servers = self._servers
        return servers.ask_all(lambda pool: protocol.check(servers.ask_again(pool, request), END))

    def _ask_all(self, request: bytes, *expected: bytes) -> list[Reply]:
        servers = self._servers
        return servers.ask_all(lambda pool: protocol.check(pool.ask(request, servers.timeout), *expected))
