"""Which sets of one queue were made before, by the ids that they carry."""

from darner.environment.timeline import Timeline
from darner.errors import UnavailableError
from darner.journal import lookup
from darner.journal.dedup_ids import Once
from darner.journal.journal import Journal

# How many ids a queue in memory remembers at most, at some 200 bytes each; on disk they take no memory.
MAX_IDS_IN_MEMORY = 1 << 18


class Dedup:
    """Tells sets that were made before, within a time, from new ones."""

    __slots__ = ("_journal", "_times", "window_ms")

    def __init__(self, journal: Journal, times: Timeline) -> None:
        self._journal = journal
        self._times = times
        # how long ids are remembered; 0 is not at all
        self.window_ms = 0

    def mark(self, id: bytes, now: int) -> Once | None:
        """Return what is to be remembered of a set with this id that is made now; None if one was made within
        the time. Raises JournalError if that cannot be found out, UnavailableError if there is no room for
        it."""
        ids = self._journal.dedup_ids
        digest = ids.digest(id)
        set_ms = lookup.when_set(self._journal, digest)
        if set_ms and self._is_within(set_ms, now):
            return None
        begins = ids.begun_ms > 0 and not self._is_within(ids.begun_ms, now)
        if self._journal.log is None:
            self._check_room(ids.last + begins)
        return Once(ids.last + begins, now, digest)

    def _check_room(self, generation: int) -> None:
        staged = self._journal.records.batch.dedup_ids
        count = sum(len(ids) for number, ids in staged.items() if number >= generation - 1)
        if count >= MAX_IDS_IN_MEMORY:
            raise UnavailableError(
                f"a queue in memory remembers {MAX_IDS_IN_MEMORY} ids of sets at most: set without an id, "
                "or shorten its dedup_window"
            )

    def _is_within(self, stamp: int, now: int) -> bool:
        return self._times.age_ms(stamp, now) < self.window_ms

    @property
    def needs_upkeep(self) -> bool:
        """Whether ids are remembered, which time makes outdated."""
        return bool(self._journal.dedup_ids.begun_ms)

    def sweep(self, now: int) -> None:
        """Forget all ids if the latest one is outdated: then nobody need come to begin a generation."""
        if not self._is_within(self._journal.dedup_ids.latest_ms, now):
            self._journal.forget_ids()
