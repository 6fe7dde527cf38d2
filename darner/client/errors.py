"""The errors of the clients, by what the caller can do about them.

- `ConnectionFailedError`: no server could be reached: nothing was sent, so try again later
- `NoFreeConnectionError`: the same; all connections of the pool are in use, as reservations hold them
- `ConnectionLostError`: the connection ended before the reply: the server may or may not have done it
- `RequestTimeoutError`: the same; no reply came in time, and the connection was closed
- `ProtocolError`: the same; what came is no reply of darner's, and the connection was closed
- `BadRequestError`: the caller's mistake: nothing was done
- `NotPermittedError`, `LoginError`: the user may not do it; user or password is wrong
- `ServerFailedError`: the server could not do it, say for want of disk space: nothing was stored
- `RefusedError`: the same; it does no such thing for now, as its status or a full disk forbids it
- `QueueFullError`: the queue has all it may have: the item was not stored
- `ItemTooLargeError`: the queue takes no item so large: it was not stored
- `ReservationLostError`: the reserved item is no longer this client's, and another reader may have it
- `CodecError`: the codec cannot encode or decode the value
- `PutManyError`: not all of `put_many` was stored: `outcomes` says what became of each value

Each is a `ClientError`, and that is a `DarnerError`.
"""

from collections.abc import Sequence

from darner.errors import DarnerError


class ClientError(DarnerError):
    """The root of every error that a client raises on purpose."""


class ConnectionFailedError(ClientError):
    """No server could be reached: nothing was sent."""


class NoFreeConnectionError(ConnectionFailedError):
    """All connections of the pool are in use, and none became free in time: nothing was sent."""


class ConnectionLostError(ClientError):
    """The connection ended before the reply: the server may have done what was asked, or not."""


class RequestTimeoutError(ConnectionLostError, TimeoutError):
    """No reply came in time. The connection was closed: a late reply must not be taken for the next one."""


class ProtocolError(ConnectionLostError):
    """What came is no reply to what was asked: the peer may be no darner. The connection was closed."""


class BadRequestError(ClientError, ValueError):
    """The caller's mistake, found here or by the server (CLIENT_ERROR): nothing was done."""


class NotPermittedError(BadRequestError):
    """The user may not do this, or the server denies it to all but admins."""


class LoginError(BadRequestError):
    """The server did not take user and password, or wants some and got none."""


class ServerFailedError(ClientError):
    """The server could not do it (SERVER_ERROR), through no fault of the caller."""


class RefusedError(ServerFailedError):
    """The server does no such thing for now: its status forbids it, or its disk is full. Nothing was done."""


class QueueFullError(ClientError):
    """The queue has as many items or bytes as it may have: the item was not stored (NOT_STORED)."""


class ItemTooLargeError(ClientError):
    """The item is larger than the queue takes: it was not stored."""


class ReservationLostError(ClientError):
    """The reserved item is no longer this client's: it went back to its queue, for another reader."""


class CodecError(ClientError, ValueError):
    """The codec cannot encode the value, or decode the item; `data` has the bytes of the item."""

    def __init__(self, text: str, data: bytes = b"") -> None:
        super().__init__(text)
        self.data = data


class PutManyError(ClientError):
    """Not all values of a `put_many` were stored for sure.

    `outcomes` has for each value, in order: None if it was stored; else the error, which tells what became of
    it: not stored (QueueFullError, ServerFailedError and others), never sent (ConnectionFailedError), or
    unknown (ConnectionLostError). `stored` is how many were stored. `__cause__` is the first error.
    """

    def __init__(self, outcomes: Sequence[ClientError | None]) -> None:
        self.outcomes = outcomes
        self.stored = sum(outcome is None for outcome in outcomes)
        first = next(outcome for outcome in outcomes if outcome is not None)
        super().__init__(f"{self.stored} of {len(outcomes)} values were stored for sure: {first}")
        self.__cause__ = first
