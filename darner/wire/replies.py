"""The replies that are always the same, and the one to an error."""

from darner.errors import DarnerError
from darner.printable import printable

END = b"END\r\n"
STORED = b"STORED\r\n"
NOT_STORED = b"NOT_STORED\r\n"
TOO_LARGE = b"SERVER_ERROR object too large for cache\r\n"
OK = b"OK\r\n"
BAD_FORMAT = b"CLIENT_ERROR bad command line format\r\n"
BAD_NAME = b"CLIENT_ERROR bad queue name: 1 to 250 bytes without space, control character or /\r\n"
BAD_STATUS = b"CLIENT_ERROR unknown status: up, readonly or quiescent\r\n"
NOTHING_RESERVED = b"ERROR\r\n"
NO_SHUTDOWN = b"CLIENT_ERROR shutdown is not allowed: allow_shutdown is not set\r\n"
NOT_FOUND = b"NOT_FOUND\r\n"
DELETED = b"DELETED\r\n"
CLOSE_FIRST = b"CLIENT_ERROR close current item first\r\n"


def server_error(error: DarnerError) -> bytes:
    """The reply to a client whose request failed through no fault of its own."""
    return f"SERVER_ERROR {printable(' '.join(str(error).split()))}\r\n".encode()
