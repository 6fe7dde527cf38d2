"""Whether and when a request is made again that does no harm if it is done twice. No I/O."""

import time

from darner.client.errors import (
    ClientError,
    ConnectionFailedError,
    ConnectionLostError,
    ProtocolError,
    RequestTimeoutError,
)

# It is made again at once, then after this pause, then after twice as long each time.
_FIRST_PAUSE_S = 0.05
_MAX_PAUSE_S = 1.0


class Repetition:
    """A request that is made again if its connection is lost before the reply, for `timeout` seconds.

    That goes on also while the server is away. But if it cannot be reached the first time, or does not reply
    in time, that is the end.
    """

    def __init__(self, timeout: float) -> None:
        self._deadline = time.monotonic() + timeout
        self._pause_s = 0.0
        self._lost: ConnectionLostError | None = None

    @property
    def left(self) -> float:
        """The seconds that the request may still take."""
        return self._deadline - time.monotonic()

    def pause_after(self, error: ClientError) -> float:
        """Return after how many seconds to make the request again; raise the error if it is not to be."""
        if isinstance(error, RequestTimeoutError | ProtocolError):
            raise error
        if isinstance(error, ConnectionLostError):
            self._lost = error
        elif not isinstance(error, ConnectionFailedError) or self._lost is None:
            raise error
        if self.left <= self._pause_s:
            raise self._lost
        pause_s = self._pause_s
        self._pause_s = min(2 * pause_s, _MAX_PAUSE_S) or _FIRST_PAUSE_S
        return pause_s
