"""Free space on the disk: while there is too little of it, sets are refused."""

import contextlib
from collections.abc import Callable

import structlog

from darner.environment.environment import Environment
from darner.errors import JournalError
from darner.queues.storage import Storage

log = structlog.get_logger()

# While less is free than so many times the reserve, space may be short before it is looked at again.
SCARCE = 4
# If the reserve had to be let go of soon after sets were taken again, they are taken later the next time, and
# at last only when there has been space for so many ticks.
STEADY_TICKS = 60


def log_full(**figures: int) -> None:
    """Log that less is free on the disk than is to be left free, or than is needed."""
    log.error(
        "disk too full, sets are refused",
        **figures,
        action="make room, or let clients get",
    )


class Space:
    """Whether the disk has space for what is set, as it was when it was last looked at."""

    def __init__(self, environment: Environment, storage: Storage, min_free_bytes: int) -> None:
        """Sets are refused while less than `min_free_bytes` is free."""
        self._environment = environment
        self._storage = storage
        self._min_free_bytes = min_free_bytes
        # why sets are refused, if they are, and whether items may be moved to other queues even so
        self.refusal: JournalError | None = None
        self.may_move = True
        # called when sets are refused from now on, or taken again
        self.on_change: Callable[[], None] = lambda: None
        # Since which tick there has been space, for how many ticks there must have been space before sets are
        # taken, and since which tick they are taken: space that is there for a moment only is not to be
        # logged again and again.
        self._ticks = 0
        self._sufficient_since = self._delay_ticks = 0
        self._accepting_since = -STEADY_TICKS

    def tick(self) -> None:
        """Look at the disk; to be called a few times a second."""
        self._ticks += 1
        self.look()

    def check(self) -> None:
        """Raise JournalError if sets are refused."""
        if self.refusal is not None:
            raise self.refusal.with_traceback(None)

    def look_if_low(self) -> None:
        """Look at the disk if large items or new queues may have filled it since the last tick."""
        if self._storage.reserve.size and self.refusal is None:
            with contextlib.suppress(OSError):
                if self._environment.free_bytes() < self._margin_bytes:
                    self.look()

    def release(self) -> bool:
        """Let go of the reserve, for the disk is full; returns whether that made space."""
        self._end_hold()
        made = self._storage.reserve.release()
        if made:
            self.look()
        return made

    @property
    def bytes_for_items(self) -> int:
        """How many bytes are free, less those that are to be left free; 0 if the system does not tell."""
        try:
            return max(0, self._environment.free_bytes() - self._min_free_bytes)
        except OSError:
            return 0

    @property
    def _margin_bytes(self) -> int:
        """How much is left free, for LevelDB's compactions, so that the reserve is seldom needed."""
        return self._storage.reserve.size // 2

    def look(self) -> None:
        """Refuse sets from now on if the disk is too full, or take them again."""
        reserve, committer = self._storage.reserve, self._storage.committer
        if not (self._min_free_bytes or reserve.size):
            return
        try:
            free_bytes = self._environment.free_bytes()
        except OSError:  # whoever needs the disk finds that out, too
            return
        margin = self._margin_bytes
        # what is in the log needs as much space again in LevelDB
        needed = committer.staged_bytes if reserve.size else 0
        self.may_move = free_bytes >= needed + margin // 2
        if self.refusal is not None:  # not to be in the same case at once again
            margin += margin // 2
        committer.space_is_scarce = free_bytes < SCARCE * reserve.size
        missing = reserve.missing_bytes
        if not reserve.was_missed() and missing and free_bytes >= needed + margin + missing:
            reserve.hold()
            free_bytes -= missing - reserve.missing_bytes
        figures = {"free_bytes": free_bytes, "min_free_bytes": self._min_free_bytes}
        if reserve.size:
            figures["needed_bytes"] = needed + margin + reserve.missing_bytes
        if free_bytes < max(needed + margin, self._min_free_bytes) + reserve.size:
            self._end_hold()
        self._set_refusal(self._find_refusal(free_bytes, needed + margin), figures)

    def _end_hold(self) -> None:
        """Delete what is kept for a backup under way: it would soon have sets refused."""
        hold = self._storage.log.hold
        if hold.is_held:
            hold.end()
            log.warning(
                "a backup under way is given up: there is too little space to keep what it needs",
                action="make room, and begin the backup again",
            )

    def _find_refusal(self, free_bytes: int, needed_bytes: int) -> JournalError | None:
        """Return why sets are to be refused while so much is free and so much is needed, or None."""
        refusal = None
        if free_bytes < self._min_free_bytes:
            refusal = JournalError("refused: less is free on the disk than min_free_space")
        elif not self._storage.reserve.is_held or free_bytes < needed_bytes:
            refusal = JournalError("refused: the disk is full")
        elif self._ticks < self._sufficient_since + self._delay_ticks:
            return self.refusal
        if refusal is not None:
            self._sufficient_since = self._ticks + 1
        return refusal

    def _set_refusal(self, refusal: JournalError | None, figures: dict[str, int]) -> None:
        storage = self._storage
        was_refused, self.refusal = self.refusal is not None, refusal
        storage.log.space_is_short = storage.committer.space_is_short = refusal is not None
        if was_refused == (refusal is not None):
            return
        if refusal is not None:
            is_soon = not storage.reserve.is_held and self._ticks < self._accepting_since + STEADY_TICKS
            self._delay_ticks = min(STEADY_TICKS, 2 * self._delay_ticks + 1) if is_soon else 0
            log_full(**figures)
        else:
            self._accepting_since = self._ticks
            log.warning("room on the disk again, sets are taken", **figures)
        self.on_change()
