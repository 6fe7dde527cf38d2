"""A coroutine that replies wait for."""

import asyncio
from collections.abc import Coroutine
from typing import Any, ClassVar, Generic, TypeVar

from darner.errors import DarnerError, InternalError, JournalError, NotReadyError
from darner.journal.wal_sync import Client

Result = TypeVar("Result")


class Settled:
    """A `Pending` that is done."""

    is_backlogged = False

    def __init__(self) -> None:
        self.held_back: list[Client] = []


class Operation(Generic[Result]):
    """Something that the cluster is asked for: a `Pending`, whose result is there once it is done."""

    __slots__ = ("_task", "held_back")

    # those that are not done: asyncio keeps no task alive, and whoever asked may go
    _under_way: ClassVar[set["Operation[Any]"]] = set()

    def __init__(self, work: Coroutine[Any, Any, Result]) -> None:
        self._under_way.add(self)
        self.held_back: list[Client] = []
        self._task = asyncio.create_task(work)
        self._task.add_done_callback(self._done)

    def _done(self, _: object) -> None:
        self._under_way.discard(self)
        held_back, self.held_back = self.held_back, []
        for client in held_back:
            client.release()

    @property
    def is_backlogged(self) -> bool:
        """Whether a reply must wait for it."""
        return not self._task.done()

    @property
    def is_done(self) -> bool:
        """Whether there is a result."""
        return self._task.done()

    def result(self) -> Result:
        """Return the result. Raises JournalError if there is an error in its place, NotReadyError before it
        is done."""
        if not self._task.done():
            raise NotReadyError("the cluster has not answered yet", self)
        try:
            return self._task.result()
        except JournalError:
            raise
        except DarnerError as error:
            raise JournalError(str(error)) from error
        except Exception as error:
            raise InternalError(error) from error
