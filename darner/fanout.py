"""Where a set goes that is for several queues at once: a queue and its children, or an alias.

All of them get the item in one turn, or none does. A queue that is by itself never comes here.
"""

from collections.abc import Sequence

from darner.journal import Client
from darner.queue import Queue


class Fanout:
    """Several queues that are set to as one."""

    __slots__ = ("queues",)

    def __init__(self, queues: Sequence[Queue]) -> None:
        self.queues = queues

    def push(self, data: bytes, flags: int, exptime: int, *, sync: bool) -> None:
        """Stage an item at the end of each queue: see `Queue.push`. If one of them cannot take it, it is in
        none."""
        self._check(data)
        for queue in self.queues:
            queue.push(data, flags, exptime, sync=sync)

    def push_delayed(self, data: bytes, flags: int, exptime: int, delay_ms: int, *, sync: bool) -> None:
        """As `push`, but the item is out of sight for `delay_ms`: see `Queue.push_delayed`."""
        self._check(data)
        for queue in self.queues:
            queue.push_delayed(data, flags, exptime, delay_ms, sync=sync)

    def _check(self, data: bytes) -> None:
        for queue in self.queues:
            queue.check(len(data))

    def acknowledge(self, client: Client, slot: int) -> None:
        """Have `client` hear if what reply `slot` says comes to nothing in one of the queues."""
        for queue in self.queues:
            queue.acknowledge(client, slot)


def parent_of(name: bytes) -> bytes:
    """The name of the queue whose child this is, by its name; b"" if it is no child."""
    parent, plus, _ = name.partition(b"+")
    return parent if plus else b""
