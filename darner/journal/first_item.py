"""When the first item of a journal was set, so that statistics need not read it each time: LevelDB may be
closed, and there may be many."""

from darner.journal.live_ids import LiveIds


class FirstItem:
    """The first live item from some id on: its id, and when it was set, a stamp; id 0 if it is not known."""

    __slots__ = ("_start", "enqueued_ms", "id")

    def __init__(self, start: int, id: int, enqueued_ms: int) -> None:
        self.note(start, id, enqueued_ms)

    def note(self, start: int, id: int, enqueued_ms: int) -> None:
        """Note the first item from id `start` on."""
        self._start = start
        self.id = id
        self.enqueued_ms = enqueued_ms

    def forget(self, id: int) -> None:
        """Note that an item is gone that `is_first` may not know of: that was not read yet."""
        if id == self.id:
            self.id = 0

    def is_first(self, start: int, live: LiveIds) -> bool:
        """Return whether it is known to be the first live item from id `start` on."""
        return self._start <= start <= self.id and live.is_live(self.id)
