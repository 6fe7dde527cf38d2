"""How many LevelDBs are open: each has four descriptors and 200 KB."""

from collections.abc import Callable

from darner.journal.journal import Journal

# How many are open at most, besides those that are being written.
MAX_OPEN = 1000


class OpenDatabases:
    """The journals whose LevelDB may be open, in the order in which they were last opened or written."""

    def __init__(self, close: Callable[[Journal], None], max_open: int = MAX_OPEN) -> None:
        """`close` is called with a journal whose LevelDB is to be closed."""
        self._close = close
        self._max_open = max_open
        self._journals: dict[Journal, None] = {}

    def note(self, journal: Journal) -> None:
        """Note that the LevelDB of `journal` was opened or written. If too many are open, close the one for
        which that is longest ago."""
        self._journals.pop(journal, None)
        self._journals[journal] = None
        while len(self._journals) > self._max_open:
            oldest = next(iter(self._journals))
            del self._journals[oldest]
            if not oldest.is_busy:  # else it is noted again when that is over
                self._close(oldest)

    def discard(self, journal: Journal) -> None:
        """Forget about `journal`, whose LevelDB is closed."""
        self._journals.pop(journal, None)
