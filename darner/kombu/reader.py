"""Where a channel's messages come from: its links to the server, and which of them is asked for the next
message.

Replies come back in order, so a `get` that waits holds back the acks behind it on its connection. Hence the
law of this room, as of `darner.work`: **a link waits only while it holds nothing.** While one holds something
it is asked for more without a wait, up to the prefetch. So a busy channel has one link that holds, and
another that waits once there is nothing more to get over the first. The last link that there may be does not
take what it waited for: it only looks, and one that holds messages already takes it.
"""

import contextlib
import threading
from collections.abc import Callable, Sequence
from time import monotonic

from kombu.log import get_logger

from darner.client import protocol
from darner.client.errors import ConnectionLostError
from darner.client.protocol import Reply
from darner.kombu.link import Ask, Delivery, Link, finish

logger = get_logger(__name__)

# How long one wait is. A server that does not answer soon after is taken for dead.
WAIT_MS = 20_000
# The most messages that are asked for in one go.
_MOST_AT_ONCE = 100
# The most links of a channel, whatever its prefetch.
_MOST_LINKS = 64
# The pause before a server is asked again that refuses to give messages.
_REST_S = 1.0
# For so long messages that are put back wait for others, so that they get back into their order.
_GATHER_S = 0.005
# What the server says to a connection that holds as many items of a queue as it may.
_HOLDS_ENOUGH = "close current item first"


class Reader:
    """The links of one channel. Threads may share it."""

    def __init__(
        self, connect: Callable[[], Link], on_open: Callable[[Link], None], on_close: Callable[[Link], None]
    ) -> None:
        """`on_open` and `on_close` are told of each link that comes and goes."""
        self._connect = connect
        self._on_open = on_open
        self._on_close = on_close
        self._lock = threading.RLock()
        self._links: list[Link] = []
        self._sources: Sequence[Sequence[bytes]] = ()
        # which of the sources comes first in the next request
        self._turn = 0
        # how many messages a link may hold: the least that a server has said
        self._limit = 1 << 16
        # whether there was nothing more when last asked, and how many to ask for at once if there was
        self._is_dry = True
        self._burst = 1
        self._rests_until = 0.0
        # messages on their way back
        self._returned: list[Delivery] = []

    @property
    def is_asking(self) -> bool:
        """Whether replies are to come at once."""
        return any(link.load > len(link.held) and not link.is_waiting for link in self._links)

    @property
    def held(self) -> int:
        """How many messages its links hold."""
        return sum(len(link.held) for link in self._links)

    def read_from(self, sources: Sequence[Sequence[bytes]]) -> None:
        """Read from these from now on. They have their turns; of the queues of one, the first that has a
        message gives it."""
        with self._lock:
            self._sources = sources
            self._is_dry, self._burst = True, 1
            # what it waits for has changed, and it holds nothing
            for link in [link for link in self._links if link.is_waiting]:
                self._drop(link)

    def pump(self, prefetch: int) -> None:
        """Ask for what the prefetch leaves room for. Raises ConnectionLostError or ConnectionFailedError."""
        with self._lock:
            self._return_all()
            self._check()
            room = prefetch - sum(link.load for link in self._links)
            if room <= 0 or not self._sources or monotonic() < self._rests_until:
                return
            if any(link.is_waiting for link in self._links):
                return
            if self._is_dry:
                self._wait(prefetch)
            else:
                self._ask_for_more(min(room, self._burst), prefetch)

    def receive(self, link: Link, timeout: float = 0) -> list[Delivery]:
        """Return the messages that have come over a link. Raises ConnectionLostError."""
        with self._lock:
            try:
                replies = link.receive(timeout)
            except ConnectionLostError:
                self._drop(link)
                raise
            return [found for what, reply in replies if (found := self._taken(link, what, reply)) is not None]

    def get(self, queues: Sequence[bytes], timeout: float) -> tuple[Delivery | None, list[Delivery]]:
        """Reserve a message if there is one, and wait for the reply: from the first of these queues that has
        one.

        Return it, and messages that were asked for before and came meanwhile. Raises ConnectionLostError, or
        what the server refuses it with.
        """
        others: list[Delivery] = []
        with self._lock:
            self._return_all()
            self._check()
            while True:
                link = self._with_room() or self._opened()
                ask = Ask()
                link.ask(_get_line(queues, ask), ask)
                reply = self._reply_to(link, ask, others, monotonic() + timeout)
                error = protocol.error_of(reply.line)
                if error is None:
                    return self._taken(link, ask, reply), others
                if _HOLDS_ENOUGH not in str(error):
                    raise error
                self._note(error, link)

    def _reply_to(self, link: Link, ask: Ask, others: list[Delivery], deadline: float) -> Reply:
        """Return the reply to one request; add to `others` what comes before it."""
        while monotonic() < deadline:
            for what, reply in link.receive(max(deadline - monotonic(), 0.001)):
                if what is ask:
                    return reply
                if (found := self._taken(link, what, reply)) is not None:
                    others.append(found)
        self._drop(link)
        raise ConnectionLostError("no reply in time")

    def close_item(self, delivery: Delivery) -> None:
        """Remove a message: it is done. Raises ConnectionLostError if it went back with its connection."""
        with self._lock:
            delivery.link.end(delivery, protocol.close_line(delivery.key, delivery.token))

    def put_back(self, delivery: Delivery) -> None:
        """Put a message back: it is the next one. Raises as `close_item`.

        The server takes the last one that is put back for the next one. So those that are put back together
        go in the opposite order, a moment later.
        """
        with self._lock:
            delivery.link.check()
            if not self._returned:
                timer = threading.Timer(_GATHER_S, self._return_all)
                timer.daemon = True
                timer.start()
            self._returned.append(delivery)

    def _return_all(self) -> None:
        with self._lock:
            returned, self._returned = self._returned, []
            for delivery in sorted(returned, key=lambda each: protocol.item_number(each.token), reverse=True):
                # if its connection was lost, it is back already
                with contextlib.suppress(ConnectionLostError):
                    delivery.link.end(delivery, protocol.abort_line(delivery.key, delivery.token))
                self._is_dry = False

    def close(self, seconds: float) -> None:
        """Close all links, once the server has done what it was asked for, or after so long: what they hold
        goes back."""
        with self._lock:
            self._return_all()
            self._sources = ()
            links, self._links = self._links, []
            for link in links:
                self._on_close(link)
            finish(links, seconds)

    def _check(self) -> None:
        for link in list(self._links):
            try:
                link.check()
            except ConnectionLostError:
                self._drop(link)
                raise

    def _wait(self, prefetch: int) -> None:
        """Wait for a message over a link that holds nothing."""
        may_open = len(self._links) < self._most_links(prefetch)
        free = [link for link in self._links if not link.load]
        if not free:
            if not may_open:
                return
            free = [self._opened()]
            may_open = len(self._links) < self._most_links(prefetch)
        takes = may_open or len(free) > 1 or not any(0 < link.load < self._limit for link in self._links)
        self._ask(free[0], Ask(WAIT_MS, takes=takes))

    def _ask_for_more(self, count: int, prefetch: int) -> None:
        link = self._with_room()
        if link is None:
            if len(self._links) >= self._most_links(prefetch):
                return
            link = self._opened()
        count = min(count, self._limit - link.load)
        if len(self._sources) == 1:
            self._ask(link, Ask(), count)
        else:
            for _ in range(count):
                self._ask(link, Ask())

    def _ask(self, link: Link, ask: Ask, times: int = 1) -> None:
        turn = self._turn = (self._turn + 1) % len(self._sources)
        keys = [key for source in (*self._sources[turn:], *self._sources[:turn]) for key in source]
        link.ask(_get_line(keys, ask), ask, times)

    def _with_room(self) -> Link | None:
        """Return a link that may hold one more: that which holds most, so that others are free to wait."""
        fit = [link for link in self._links if not link.is_waiting and link.load < self._limit]
        return max(fit, key=lambda link: link.load, default=None)

    def _most_links(self, prefetch: int) -> int:
        return min(2 + -(-prefetch // self._limit), _MOST_LINKS)

    def _opened(self) -> Link:
        link = self._connect()
        self._links.append(link)
        self._on_open(link)
        return link

    def _drop(self, link: Link) -> None:
        self._links.remove(link)
        self._on_close(link)
        link.close()

    def _taken(self, link: Link, what: Ask | Delivery, reply: Reply) -> Delivery | None:
        """Take note of a reply; return the message if it has one that is ours now."""
        error = protocol.error_of(reply.line)
        if isinstance(what, Delivery):
            if error is not None:
                logger.warning("a message was not acknowledged, and comes again: %s", error)
            return None
        if error is not None:
            self._note(error, link)
            return None
        if not reply.values:
            self._is_dry, self._burst = True, 1
            return None
        value = reply.values[0]
        if what.wait_ms:
            self._is_dry, self._burst = False, 1
        else:
            self._burst = min(self._burst * 2, _MOST_AT_ONCE)
        if not what.takes:
            return None
        delivery = Delivery(link, value.key.partition(b"/")[0], value.token, value.data)
        link.held.add(delivery)
        return delivery

    def _note(self, error: Exception, link: Link) -> None:
        """Take note that the server gave an error in place of a message."""
        if _HOLDS_ENOUGH in str(error):
            self._limit = min(self._limit, max(1, len(link.held)))
            return
        if monotonic() >= self._rests_until:
            logger.error("the server gives no messages, and is asked again: %s", error)
        self._rests_until = monotonic() + _REST_S


def _get_line(keys: Sequence[bytes], ask: Ask) -> bytes:
    return protocol.get_line(keys, b"/open" if ask.takes else b"/peek", ask.wait_ms)
