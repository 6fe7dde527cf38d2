"""A reserved item, as far as it needs no I/O: how it ends, and that it ends once."""

from darner.client import protocol
from darner.client.codecs import Codec
from darner.client.errors import BadRequestError
from darner.client.item import Item
from darner.client.protocol import Value


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

    def aborting(self, delay: float = 0) -> bytes:
        """Return the request that puts the item back, out of sight for `delay` seconds; errors as there."""
        request = protocol.abort_line(self._key, self.token, delay)  # first: the delay may be wrong
        self._end()
        return request

    def _end(self) -> None:
        if not self.is_open:
            raise BadRequestError("this reservation has ended: it was closed, aborted or retried")
        self.is_open = False
