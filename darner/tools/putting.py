"""Putting many items as they come, and telling for sure how many are stored."""

from collections.abc import Sequence

from darner.client.client import Client
from darner.client.errors import (
    ClientError,
    ConnectionFailedError,
    ConnectionLostError,
    PutManyError,
)
from darner.errors import ToolError


class Putting:
    """Puts items on a queue. `stored` is how many are there for sure."""

    def __init__(
        self,
        client: Client,
        queue: str,
        *,
        delay: float = 0,
        expire: float = 0,
        id: str | None = None,
        sync: bool = False,
    ) -> None:
        """Arguments are as for `Client.put_many`. With an `id` the items get `<id>-1`, `<id>-2` and so on."""
        self._client = client
        self._queue = queue
        self._delay = delay
        self._expire = expire
        self._id = id
        self._sync = sync
        self.stored = 0

    def put(self, items: Sequence[bytes]) -> None:
        """Put items. If that fails ToolError, or ConnectionFailedError if no server can be reached, says how
        many are stored, and how many perhaps."""
        ids = None
        if self._id is not None:
            ids = [f"{self._id}-{self.stored + number}" for number in range(1, len(items) + 1)]
        try:
            self._client.put_many(
                self._queue, items, delay=self._delay, expire=self._expire, ids=ids, sync=self._sync
            )
        except PutManyError as error:
            self.stored += error.stored
            raise self._failed(error.outcomes, len(items)) from error
        except ConnectionFailedError as error:
            raise self._failed([error], len(items)) from error
        self.stored += len(items)

    def _failed(self, outcomes: Sequence[ClientError | None], count: int) -> Exception:
        first = next(outcome for outcome in outcomes if outcome is not None)
        unsure = sum(isinstance(outcome, ConnectionLostError) for outcome in outcomes)
        perhaps = f", and {unsure} more perhaps" if unsure else ""
        text = f"{first}: {self.stored} items are stored{perhaps}"
        at = self.stored - sum(outcome is None for outcome in outcomes) + list(outcomes).index(first) + 1
        if len(outcomes) == count and not unsure:
            text += f", and item {at} is the first that is not"
        return (ConnectionFailedError if isinstance(first, ConnectionFailedError) else ToolError)(text)
