"""Reserved items of the sync client, and the connections that hold them."""

import threading
from collections.abc import Callable, Sequence
from types import TracebackType

from darner.client import protocol
from darner.client.codecs import Codec
from darner.client.connection import Connection
from darner.client.errors import ClientError, ConnectionLostError, ReservationLostError
from darner.client.pool import Pool
from darner.client.protocol import END, Value
from darner.client.reservation import Reserved

# How many items are ended at once: so many requests fit into the buffers on the way, and so do their replies.
_ENDED_AT_ONCE = 256


class Hold:
    """What is reserved on one connection, which goes back to its pool when all of it has ended.

    Items may be ended by several threads. One that the server could not close stays reserved as long as the
    connection lives; so this is then closed in place of being given back.
    """

    def __init__(self, pool: Pool, connection: Connection, timeout: float) -> None:
        self.pool = pool
        self._connection = connection
        self._timeout = timeout
        self._lock = threading.Lock()
        # how many items are still reserved
        self.count = 0
        self._is_sound = True

    def end(self, requests: Sequence[bytes]) -> list[ClientError | None]:
        """Send the requests that end so many items; return for each None or its error."""
        outcomes: list[ClientError | None] = []
        with self._lock:
            try:
                for at in range(0, len(requests), _ENDED_AT_ONCE):
                    window = requests[at : at + _ENDED_AT_ONCE]
                    replies = self._connection.ask_many(window, self._timeout)
                    outcomes += [None if reply.line == END else protocol.error_in(reply) for reply in replies]
            except ConnectionLostError as error:
                outcomes += [error] * (len(requests) - len(outcomes))
            finally:
                # Of what has no outcome, as Ctrl-C came, the connection is closed, and it has gone back.
                known = [
                    error for error in outcomes if error is None or isinstance(error, ReservationLostError)
                ]
                self._is_sound = self._is_sound and len(known) == len(requests)
                self.count -= len(requests)
                if not self.count:
                    self._release()
        return outcomes

    def _release(self) -> None:
        if self._is_sound:
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
        super().__init__(value, queue, str(hold.pool.address), codec)
        self.hold = hold
        hold.count += 1

    def close(self) -> None:
        """Remove the item: it is done.

        Raises ReservationLostError if it went back meanwhile, as `open_timeout` was over: another reader may
        have it. Raises ConnectionLostError if it is unknown whether it was removed: it may be delivered
        again. Nothing is sent again, for an item is known to its connection alone.
        """
        _raise_first(self.hold.end([self.closing()]))

    def abort(self) -> None:
        """Put the item back at the head of its queue; errors as for `close`, though it has gone back then."""
        _raise_first(self.hold.end([self.aborting()]))

    def retry(self, delay: float = 0) -> None:
        """Put the item back: it is out of sight for `delay` seconds, then joins the end of its queue."""
        _raise_first(self.hold.end([self.aborting(delay)]))


def close_all(items: Sequence[Reservation]) -> None:
    """Close those of these items that have not ended, all on one connection; raise the first error."""
    _raise_first(_end([item for item in items if item.is_open], Reservation.closing))


def abort_all(items: Sequence[Reservation]) -> None:
    """Put back those of these items that have not ended, all on one connection.

    Never fails: if the server does not do it, the connection is closed, and that puts them back.
    """
    # each goes to the head, so the first is put back last
    _end([item for item in reversed(items) if item.is_open], Reservation.aborting)


def _end(
    items: Sequence[Reservation], request: Callable[[Reservation], bytes]
) -> Sequence[ClientError | None]:
    return items[0].hold.end([request(item) for item in items]) if items else ()


def _raise_first(outcomes: Sequence[ClientError | None]) -> None:
    for error in outcomes:
        if error is not None:
            raise error


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
        """Close the items that have not ended, or put them back after an exception."""
        if kind is None:
            close_all(self._items)
        else:
            abort_all(self._items)


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
