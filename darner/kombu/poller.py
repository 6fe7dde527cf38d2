"""Waits for the links of all channels of a connection, in kombu's hub or without one."""

from collections.abc import Iterable
from typing import Any, Protocol

from kombu.utils.eventio import ERR, READ, poll

from darner.kombu.link import Link


class Receiver(Protocol):
    """The channel of a link."""

    def receive(self, link: Link) -> int:
        """Hand on the messages that have come over the link; return how many."""


class Poller:
    """The links of one connection, each with its channel."""

    def __init__(self) -> None:
        self._poll = poll()
        self._links: dict[int, tuple[Receiver, Link]] = {}
        self._hub: Any = None

    def add(self, channel: Receiver, link: Link) -> None:
        """Poll a link from now on."""
        self._links[link.fileno()] = channel, link
        self._poll.register(link.fileno(), READ | ERR)
        self._add_to_hub(channel, link)

    def remove(self, link: Link) -> None:
        """Poll a link no more; its socket is still open, unless this is the child of the process that opened
        it."""
        fd = link.fileno()
        if fd < 0 or self._links.pop(fd, None) is None:
            return
        self._poll.unregister(fd)
        if self._hub is not None:
            self._hub.remove(fd)

    def use_hub(self, hub: Any) -> None:
        """Have a hub poll the links, too, from now on; None is none any more."""
        self._hub = hub
        for channel, link in list(self._links.values()):
            self._add_to_hub(channel, link)

    def drain(self, timeout: float | None) -> int:
        """Wait for replies, and hand on the messages in them; return how many. Raises a connection error."""
        found: Iterable[tuple[int, int]] = self._poll.poll(timeout) or ()
        return sum(self._receive(fd) for fd, _ in found)

    def close(self) -> None:
        """Poll nothing any more."""
        self._hub = None
        self._links.clear()
        self._poll.close()

    def _receive(self, fd: int) -> int:
        if fd not in self._links:
            return 0
        channel, link = self._links[fd]
        return channel.receive(link)

    def _add_to_hub(self, channel: Receiver, link: Link) -> None:
        if self._hub is not None:
            self._hub.add_reader(link.fileno(), channel.receive, link)
