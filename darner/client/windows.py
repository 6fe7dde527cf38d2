"""How much of a pipeline is sent before its replies are read, so that neither side waits for the other for
ever, and memory stays bounded whatever the size of items.

A server stops reading while nobody reads its replies. So what is sent in one go, or the replies to it, must
fit into the buffers between client and server.
"""

from collections.abc import Sequence

from darner.client.protocol import Value

Request = bytes | Sequence[bytes]

# Sets that are sent in one go, unless one of them is larger. Their replies are short: two such windows may be
# on their way, even if all are refused.
SETS = 128
_SETS_BYTES = 1 << 17
# What the requests for items may have that are sent in one go: it is their replies that are long.
_GETS_BYTES = 1 << 14
# About what the items of one call may have.
_ITEMS_BYTES = 1 << 26


def window_of_sets(requests: Sequence[Request], start: int) -> tuple[int, list[bytes]]:
    """Return how many of the requests, from `start` on, are to be sent in one go, and the parts to send.

    A request that comes in parts, since it is large, is sent by itself: it is not copied.
    """
    parts: list[bytes] = []
    size = 0
    for request in requests[start : start + SETS]:
        if not isinstance(request, bytes):
            if not parts:
                return 1, list(request)
            break
        parts.append(request)
        size += len(request)
        if size >= _SETS_BYTES:
            break
    return len(parts), [b"".join(parts)]


class GetWindow:
    """How many items may be asked for in one go."""

    def __init__(self, line_bytes: int) -> None:
        """`line_bytes` is what one request has."""
        self._most = max(_GETS_BYTES // line_bytes, 1)
        self._left_bytes = _ITEMS_BYTES
        self._largest_bytes = 1

    @property
    def has_room(self) -> bool:
        """Whether one more item may be asked for."""
        return self._left_bytes > 0

    def size(self, wanted: int) -> int:
        """Return how many of the wanted items to ask for: as many as fit if none is larger."""
        return min(wanted, self._most, max(self._left_bytes // self._largest_bytes, 1))

    def took(self, values: Sequence[Value]) -> None:
        """Take note of items that came."""
        sizes = [len(value.data) for value in values]
        self._left_bytes -= sum(sizes)
        self._largest_bytes = max(self._largest_bytes, *sizes, 1)
