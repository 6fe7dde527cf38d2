"""The messages that a channel was given and has not acknowledged."""

import itertools

from darner.kombu.link import Delivery
from darner.kombu.reader import Reader


class QoS:
    """How many messages a channel may hold (`prefetch_count`, 0 is any number), and which it holds."""

    def __init__(self, reader: Reader) -> None:
        self.prefetch_count = 0
        self._reader = reader
        self._held: dict[int, Delivery] = {}
        self._tags = itertools.count(1)

    def hold(self, delivery: Delivery) -> int:
        """Keep a message until it is acknowledged; return its tag, which no other message of the channel
        has."""
        tag = next(self._tags)
        self._held[tag] = delivery
        return tag

    def ack(self, tag: int, *, multiple: bool = False) -> None:
        """Remove a message, or with `multiple` all up to it. Raises ConnectionLostError if it went back
        meanwhile."""
        for each in [each for each in list(self._held) if each <= tag] if multiple else [tag]:
            if (delivery := self._held.pop(each, None)) is not None:
                self._reader.close_item(delivery)

    def put_back(self, tag: int) -> None:
        """Put a message back: it is the next one. Raises ConnectionLostError if it went back meanwhile."""
        if (delivery := self._held.pop(tag, None)) is not None:
            self._reader.put_back(delivery)

    def put_all_back(self) -> None:
        """Put all messages back, in their order."""
        for tag in sorted(self._held, reverse=True):
            self.put_back(tag)
