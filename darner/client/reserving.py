"""Reserved items of the sync client, and the connections that hold them."""

import threading
from collections.abc import Callable, Sequence
from types import TracebackType

from darner.client.codecs import Codec
from darner.client.connection import Connection
from darner.client.errors import ClientError, ConnectionFailedError, ConnectionLostError
from darner.client.pool import Pool
from darner.client.protocol import Value
from darner.client.reservation import (
    Held,
    Outcomes,
    Reserved,
    aborting_all,
    closing_all,
    in_parts,
    outcomes_of,
    raise_first,
)


class Hold(Held):
    """What is reserved on one connection, which goes back to its pool when all of it has ended.

    Items may be ended by several threads.
    """

    def __init__(self, pool: Pool, connection: Connection, timeout: float) -> None:
        super().__init__()
        self.pool = pool
        self._connection = connection
        self._timeout = timeout
        self._lock = threading.Lock()

    def end(self, requests: Sequence[bytes]) -> Outcomes:
        """Send the requests that end so many items; return for each None or its error."""
        outcomes: list[ClientError | None] = []
        with self._lock:
            try:
                for part in in_parts(requests):
                    outcomes += outcomes_of(self._connection.ask_many(part, self._timeout))
            except (ConnectionFailedError, ConnectionLostError) as error:
                # if nothing was sent, too, the item went back as the connection ended
                lost = error if isinstance(error, ConnectionLostError) else ConnectionLostError(str(error))
                outcomes += [lost] * (len(requests) - len(outcomes))
            finally:
                # What has no outcome, as Ctrl-C came, has gone back: the connection is closed.
                if self.ended(len(requests), outcomes):
                    self._release()
        return outcomes

    def _release(self) -> None:
        if self.is_sound:
            self.pool.give(self._connection)
        else:
            self.pool.discard(self._connection)


class Reservation(Reserved):
    """An item that is reserved for this client until it is closed, aborted or retried: once, by one of the
    three.

    If the client dies, it goes back to the head of its queue.
    """

    __slots__ = ("hold",)

    def __init__(self, value: Value, queue: bytes, hold: Hold, codec: Codec | None) -> None:
        super().__init__(value, queue, hold.pool.name, codec)
        self.hold = hold
        hold.count += 1

    def close(self) -> None:
        """Remove the item: it is done.

        Raises ReservationLostError if it went back meanwhile, as `open_timeout` was over: another reader may
        have it. Raises ConnectionLostError if it is unknown whether it was removed: it may be delivered
        again. Nothing is sent again, for an item is known to its connection alone.
        """
        raise_first(self.hold.end([self.closing()]))

    def abort(self) -> None:
        """Put the item back at the head of its queue; errors as for `close`, though it has gone back then."""
        raise_first(self.hold.end([self.aborting()]))

    def retry(self, delay: float = 0) -> None:
        """Put the item back: it is out of sight for `delay` seconds, then joins the end of its queue."""
        raise_first(self.hold.end([self.aborting(delay)]))


class ReservingMany:
    """The context of `Client.reserve_many`: fetches items when it is entered, ends them when it is left."""

    __slots__ = ("_fetch", "_items")

    def __init__(self, fetch: Callable[[], list[Reservation]]) -> None:
        self._fetch = fetch
        self._items: list[Reservation] = []

    def __enter__(self) -> list[Reservation]:
        """Fetch, and return the reservations; none if nothing came in time."""
        self._items = self._fetch()
        return self._items

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the items that have not ended, or put them back after an exception; all in one go.

        To put them back never fails: if the server does not do it, the connection is closed, and that does.
        """
        requests = closing_all(self._items) if kind is None else aborting_all(self._items)
        if requests:
            outcomes = self._items[0].hold.end(requests)
            if kind is None:
                raise_first(outcomes)


class Reserving:
    """The context of `Client.reserve`: as ReservingMany, of one item."""

    __slots__ = ("_many",)

    def __init__(self, fetch: Callable[[], list[Reservation]]) -> None:
        self._many = ReservingMany(fetch)

    def __enter__(self) -> Reservation | None:
        """Fetch, and return the reservation; None if nothing came in time."""
        items = self._many.__enter__()
        return items[0] if items else None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the item if it has not ended, or put it back after an exception."""
        self._many.__exit__(kind, error, trace)
