"""The request that sets an item with all that belongs to it, and with an id, so that it may be made again."""

from darner.client import protocol
from darner.client.protocol import CRLF, LARGE_BYTES
from darner.client.windows import Request


def set_request(
    queue: bytes, data: bytes, flags: int, left_s: float | None, id: bytes, *, sync: bool = False
) -> Request:
    """Return the request. `left_s` is what is left of the expiry, in seconds; None is never."""
    # what has less than a second left must not be kept for ever
    expire = 0 if left_s is None else max(left_s, 1)
    line = protocol.put_line(queue, len(data), flags, expire=expire, id=id, sync=sync)
    # large data are not copied
    return line + data + CRLF if len(data) < LARGE_BYTES else (line, data, CRLF)
