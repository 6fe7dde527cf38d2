"""Fetches without I/O: what is asked for next, for `reserve_many` and `browse`."""

from collections.abc import Sequence

from darner.client import protocol
from darner.client.errors import BadRequestError
from darner.client.protocol import Reply, Value
from darner.client.windows import GetWindow

OPEN = b"/open"
PEEK = b"/peek"
# A wait at a fleet is made of rounds of so many seconds: after each, servers that are back are asked, too.
ROUND_S = 5.0


class More:
    """Up to `count` reserved items, the first of which has come; fewer if there are no more.

    `max_open_reads` of the queue bounds them, too, and so do 64 MiB of data.
    """

    def __init__(self, keys: Sequence[bytes], first: Value, count: int) -> None:
        self._request = protocol.get_line(keys, OPEN)
        self._count = count
        self._window = GetWindow(len(self._request))
        self._window.took([first])
        self._asked = 0
        self._is_over = False
        self.values = [first]

    def requests(self) -> list[bytes]:
        """Return the requests to send in one go; none if that was all."""
        if self._is_over or not self._window.has_room:
            return []
        self._asked = self._window.size(self._count - len(self.values))
        return [self._request] * self._asked

    def took(self, replies: Sequence[Reply]) -> None:
        """Take note of the replies to them."""
        found = [value for reply in replies for value in reply.values]
        self.values += found
        self._window.took(found)
        # there are no more, no more may be reserved, or the server fails: what there is can be worked on
        self._is_over = len(found) < self._asked


class Pages:
    """The items that wait in a queue of one server, in order, from the id `start` on; none is taken.

    The ids of the items of a page are guessed, as those next to each other; where many are missing, pages
    become small. `page` is the most that is asked for in one go.
    """

    def __init__(self, key: bytes, start: int, page: int) -> None:
        if start < 1 or page < 1:
            raise BadRequestError("start and page are at least 1")
        self._key = key
        self._start = start
        self._page = page
        self._guessed = 1
        self._window = GetWindow(len(protocol.browse_line(key, start + page)))
        self.is_over = False

    def requests(self) -> list[bytes]:
        """Return the requests for the next page, to send in one go."""
        return [protocol.browse_line(self._key, self._start + more) for more in range(self._guessed)]

    def took(self, replies: Sequence[Reply]) -> list[Value]:
        """Return the items of a page from the replies; raise the error that one of them stands for."""
        values: list[Value] = []
        for reply in replies:
            protocol.check(reply, protocol.END)
            values += [value for value in reply.values if protocol.item_number(value.token) >= self._start]
            if values:
                self._start = protocol.item_number(values[-1].token) + 1
        self.is_over = not replies[-1].values
        self._window.took(values)
        # twice as many where at least half of the guesses were right
        wanted = self._guessed * 2 if 2 * len(values) > self._guessed else self._guessed // 2 or 1
        self._guessed = min(self._window.size(wanted), self._page)
        return values
