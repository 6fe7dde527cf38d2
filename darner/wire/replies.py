"""Every reply that is always the same, the replies to errors, and what is in a reply alone."""

from darner._proto import Request, Verb
from darner.errors import DarnerError, ItemTooLargeError, QueueFullError
from darner.printable import printable

OK = b"OK\r\n"
END = b"END\r\n"
STORED = b"STORED\r\n"
NOT_STORED = b"NOT_STORED\r\n"
DELETED = b"DELETED\r\n"
NOT_FOUND = b"NOT_FOUND\r\n"
RESET = b"RESET\r\n"
RELOADED = b"Reloaded config.\r\n"
# what Kestrel replies to `flush_all`, where memcached has OK
FLUSHED = b"Flushed all queues.\r\n"
META_NO_OP = b"MN\r\n"
META_NOTHING = b"EN\r\n"
NOTHING_RESERVED = b"ERROR\r\n"
TOO_LARGE = b"SERVER_ERROR object too large for cache\r\n"
BAD_FORMAT = b"CLIENT_ERROR bad command line format\r\n"
BAD_NAME = b"CLIENT_ERROR bad queue name: 1 to 250 bytes without space, control character or /\r\n"
BAD_STATUS = b"CLIENT_ERROR unknown status: up, readonly or quiescent\r\n"
NO_SHUTDOWN = b"CLIENT_ERROR shutdown is not allowed: allow_shutdown is not set\r\n"
CLOSE_FIRST = b"CLIENT_ERROR close current item first\r\n"
NOT_HELD = b"CLIENT_ERROR no such reserved item\r\n"


def server_error(error: DarnerError) -> bytes:
    """Return the reply to a request that failed through no fault of the client."""
    return f"SERVER_ERROR {printable(' '.join(str(error).split()))}\r\n".encode()


def client_error(error: DarnerError) -> bytes:
    """Return the reply to a request that is the client's mistake."""
    return f"CLIENT_ERROR {printable(str(error))}\r\n".encode()


def not_stored(error: DarnerError) -> bytes:
    """Return the reply to a `set` that failed."""
    if isinstance(error, ItemTooLargeError):
        return TOO_LARGE
    return NOT_STORED if isinstance(error, QueueFullError) else server_error(error)


def takes_item(request: Request) -> bool:
    """Return whether a request removes an item for good, so that it is in the reply alone."""
    return request.verb in (Verb.GET, Verb.GETS) and any(
        each.fetches and not (each.open or each.peek) for each in (request, *(request.rest or ()))
    )
