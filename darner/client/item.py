"""An item as a client has it."""

from typing import Any

from darner.client import codecs, protocol
from darner.client.codecs import Codec
from darner.client.protocol import Value


class Item:
    """An item of a queue.

    `queue` is its name, or `<queue>/cursor=<name>` as it was asked. `data` are its bytes and `flags` what its
    writer kept there. `token` names this delivery of it. `server` is the address of the server that it is on.
    """

    __slots__ = ("_codec", "data", "flags", "queue", "server", "token")

    def __init__(self, value: Value, queue: bytes, server: str, codec: Codec | None) -> None:
        self.queue = queue.decode(errors="surrogateescape")
        self.data = value.data
        self.flags = value.flags
        self.token = value.token
        self.server = server
        self._codec = codec

    @property
    def id(self) -> int:
        """The number of the item in its queue on its server; a later one has a greater number."""
        return protocol.item_number(self.token)

    @property
    def attempts(self) -> int:
        """How often the item has come back: by an abort, a lost connection or open_timeout."""
        return protocol.attempts(self.token)

    @property
    def value(self) -> Any:
        """What was put: bytes, or what the codec makes of them; CodecError if it cannot."""
        return codecs.decode(self._codec, self.data, self.flags)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} of {self.queue!r}, {len(self.data)} bytes>"
