"""Reserved items, as far as they need no I/O: how one ends, that it ends once, and when all of a connection
have ended.
"""

from collections.abc import Iterator, Sequence

from darner.client import protocol
from darner.client.codecs import Codec
from darner.client.errors import BadRequestError, ClientError, ReservationLostError
from darner.client.item import Item
from darner.client.protocol import Reply, Value

# How many items are ended at once: so many requests fit into the buffers on the way, and so do their replies.
_ENDED_AT_ONCE = 256

# For each item that was to be ended None if that is done, or its error.
Outcomes = Sequence[ClientError | None]


class Reserved(Item):
    """An item that is set aside for this client on the connection that gave it, until it is closed or
    aborted.

    The clients' reservations are made of it: they send what `closing` and `aborting` return.
    """

    __slots__ = ("_key", "is_open")

    def __init__(self, value: Value, queue: bytes, server: str, codec: Codec | None) -> None:
        super().__init__(value, queue, server, codec)
        self._key = queue
        # whether it is still to be closed or aborted
        self.is_open = True

    def closing(self) -> bytes:
        """Return the request that removes the item; BadRequestError if it has ended already."""
        self._end()
        return protocol.close_line(self._key, self.token)

    def aborting(self, delay: float | None = None) -> bytes:
        """Return the request that puts the item back: see `protocol.abort_line`; errors as for `closing`."""
        request = protocol.abort_line(self._key, self.token, delay)  # first: the delay may be wrong
        self._end()
        return request

    def _end(self) -> None:
        if not self.is_open:
            raise BadRequestError("this reservation has ended: it was closed, aborted or retried")
        self.is_open = False


class Held:
    """How many items are reserved on one connection, and whether that can be used again when all have ended.

    An item that the server could not close stays reserved as long as the connection lives; so that is then
    closed in place of being given back.
    """

    def __init__(self) -> None:
        # how many items are still reserved
        self.count = 0
        self.is_sound = True

    def ended(self, count: int, outcomes: Outcomes) -> bool:
        """Take note that so many items were to be ended; return whether they were the last.

        Of an item without an outcome it is unknown.
        """
        known = [error for error in outcomes if error is None or isinstance(error, ReservationLostError)]
        self.is_sound = self.is_sound and len(known) == count
        self.count -= count
        return not self.count


def in_parts(requests: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Give the requests to send in one go, then those to send when they are answered, and so on."""
    for at in range(0, len(requests), _ENDED_AT_ONCE):
        yield requests[at : at + _ENDED_AT_ONCE]


def outcomes_of(replies: Sequence[Reply]) -> Outcomes:
    """Return what the replies to the requests that end items stand for."""
    return [None if reply.line == protocol.END else protocol.error_in(reply) for reply in replies]


def closing_all(items: Sequence[Reserved]) -> list[bytes]:
    """Return the requests that remove those of these items that have not ended."""
    return [item.closing() for item in items if item.is_open]


def aborting_all(items: Sequence[Reserved]) -> list[bytes]:
    """Return the requests that put back those of these items that have not ended."""
    # each goes to the head, so the first is put back last
    return [item.aborting() for item in reversed(items) if item.is_open]


def raise_first(outcomes: Outcomes) -> None:
    """Raise the first error."""
    for error in outcomes:
        if error is not None:
            raise error
