"""How far a migration is, and whether it is to stop."""

from collections.abc import Callable

# After so many items it is told how far it is, and asked whether to stop.
_ITEMS_BETWEEN = 256


class Stopped(Exception):  # noqa: N818  # it is no error
    """A migration was asked to stop: it can be gone on with."""


class Steps:
    """The items that are done, one after the other."""

    def __init__(self, progress: Callable[[int], None], is_stopped: Callable[[], bool]) -> None:
        """`progress` is called with how many items are done, and `is_stopped` tells whether to stop."""
        self._progress = progress
        self._is_stopped = is_stopped
        self._done = 0

    def take(self) -> None:
        """Count one more item. Raises Stopped."""
        self._done += 1
        if self._done % _ITEMS_BETWEEN == 0:
            self._progress(self._done)
            if self._is_stopped():
                raise Stopped
