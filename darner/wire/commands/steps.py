"""The steps of a `get` that fetching.py lends to the rooms below it.

There a `get` goes on that is not answered at once, or not with one item in memory.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from darner._proto import Request
from darner._records import Item
from darner.queues.waiters import Source
from darner.wire.connection import Connection


class Answer(Protocol):
    """The last step."""

    def __call__(
        self,
        connection: Connection,
        request: Request,
        queue: Source | None,
        item: Item | None,
        *,
        one_of_many: bool = False,
        deadline: float = 0,
        again: Callable[[], None] | None = None,
    ) -> None:
        """Count a fetch, and reply with the item and `END`, or `END` alone; no `END` behind one of many."""


class Steps(NamedTuple):
    """The functions of fetching.py that do the steps; they are described there."""

    prepare: Callable[[Connection, Request, Source | None], Source | None]
    release: Callable[[Connection, Request], None]
    fetch: Callable[[Request, Source], Item | None]
    fetch_or_wait: Callable[[Connection, Request, Source, float], None]
    answer: Answer
    key: Callable[[Connection, Request], bytes]
