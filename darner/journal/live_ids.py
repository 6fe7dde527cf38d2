# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""Which ids of a journal are live, as far as that is known without reading its records.

Ids are given out one after the other, and items mostly go in that order. So one number, the floor, tells most
of it: all from there on are live but those in `removed`, and none below it but those in `kept`. Taking the
oldest item moves the floor, and deletes nothing.
"""

from collections.abc import Collection

from darner._records import State

# How many ids above the floor may be removed before the floor is moved past them.
MAX_REMOVED = 4096


class LiveIds:
    """The live ids of one journal. The floor is in its state, and `kept` in a record of its own."""

    __slots__ = ("has_kept_record", "is_kept_unstaged", "kept", "removed", "state")

    def __init__(self, state: State, kept: Collection[int] = (), *, has_kept_record: bool = False) -> None:
        self.state = state
        # ids from the floor on, up to where was read, that are not live
        self.removed: set[int] = set()
        # ids below the floor that are live
        self.kept: set[int] = set(kept)
        # whether LevelDB has a record of them, or will have; and whether that is to be written anew
        self.has_kept_record = has_kept_record
        self.is_kept_unstaged = False

    def is_live(self, id: int) -> bool:
        """Whether an id is live, as far as that is known without reading."""
        return id in self.kept or (self.state.floor <= id < self.state.next_id and id not in self.removed)

    def remove(self, id: int) -> None:
        """Note that an id from the floor on, which was read, is not live any more."""
        self.removed.add(id)
        if len(self.removed) > MAX_REMOVED:
            self.raise_floor()

    def advance(self) -> None:
        """Move the floor past the removed ids that follow it."""
        floor = self.state.floor
        while floor in self.removed:
            self.removed.remove(floor)
            floor += 1
        self.state.floor = floor

    def raise_floor(self) -> None:
        """Move the floor past all removed ids and keep the live ones below it: an item that stays reserved
        while all behind it go then costs neither memory nor time at the next start."""
        top = max(self.removed) + 1
        self.keep_below(top)
        self.set_floor(top)

    def keep_below(self, stop: int) -> None:
        """Have the live ids from the floor up to `stop` among the kept ones, for the floor to be moved."""
        self.kept.update([id for id in range(self.state.floor, stop) if id not in self.removed])

    def set_floor(self, floor: int) -> None:
        """Move the floor, with nothing removed above it."""
        self.state.floor = floor
        self.removed.clear()
        # The record's key is behind those of items: a table of LevelDB that has it overlaps with all later
        # ones, so it is written only when it has to be.
        if self.kept or self.has_kept_record:
            self.has_kept_record = bool(self.kept)
            self.is_kept_unstaged = True

    def can_list(self, start: int, stop: int) -> bool:
        """Whether the ids from `start` up to `stop` are few enough to be removed one by one."""
        return stop - start <= MAX_REMOVED

    def forget_below_floor(self) -> None:
        """Drop the removed ids that the floor has passed."""
        floor = self.state.floor
        self.removed = {id for id in self.removed if id >= floor}

    def is_whole(self) -> bool:
        """Whether as many items are live as are counted, given that all were read."""
        state = self.state
        return state.next_id - state.floor - len(self.removed) + len(self.kept) == state.items
