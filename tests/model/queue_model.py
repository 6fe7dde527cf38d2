"""The model of the queues of a broker: plain lists, and the states that a power cut may leave.

A number stands for an item. The ids of sets that are remembered are in a state, too, each in a pair with when
it was set.
"""

import collections

WINDOW_MS = 10_000


def may_be_without(missing, may_miss):
    """Return whether so much may be missing of a state: large items in `may_miss`, and never an id."""
    return all(isinstance(each, int) and abs(each) in may_miss for each in missing)


def known(state, now):
    """Return a state without the ids that are outdated by now."""
    return frozenset(each for each in state if isinstance(each, int) or now - each[1] < WINDOW_MS)


class Hold:
    """A reserved item of a real queue."""

    def __init__(self, queue, item, number):
        self.queue, self.item, self.number = queue, item, number


class Passing:
    """The states between two: some expired items are removed, in any order, and due ones join, one by one.

    Of the due ones those in `gone` have expired, too.
    """

    def __init__(self, before, expired, joined, gone):
        self._stays = before - expired - {-number for number in joined}
        self._expired, self._joined, self._gone = expired, joined, gone

    def __contains__(self, number):
        return number in self._stays

    def fits(self, held, may_miss, now):
        """Return whether one of these states may be found as `held`; items in `may_miss` may be missing.
        `held` is without outdated ids."""
        for count in range(len(self._joined) + 1):
            joined = frozenset(self._joined[:count])
            least = self._stays | (joined - self._gone) | {-number for number in self._joined[count:]}
            if held <= least | self._expired | joined and may_be_without(known(least, now) - held, may_miss):
                return True
        return False


class Order(dict):
    """By number, its place in the order of sets; a number that goes to the end again gets another one."""

    def __init__(self):
        super().__init__()
        self._past = collections.defaultdict(set)

    def __setitem__(self, number, place):
        super().__setitem__(number, place)
        self._past[number].add(place)

    def fits(self, numbers, *, is_exact):
        """Return whether numbers are in their order; unless `is_exact` in one in which they have been."""
        last = -1
        for number in numbers:
            places = (self[number],) if is_exact else self._past[number]
            last = min((place for place in places if place > last), default=None)
            if last is None:
                return False
        return True


class Twin:
    """The model of a queue: what it holds, what it has held, and what may be found after a power cut."""

    def __init__(self):
        self.waiting = []
        self.reserved = {}
        self.delayed = {}  # by number, when it is due
        self.ids = {}  # by the id of a set, when it was stored
        self.exists = False
        # what it has held since the last power cut; None while it did not exist
        self.history = [None]
        # the oldest of these states that may be found after the next power cut
        self.promised = 0
        # while it is out of service, the states that may be found once it is back
        self.unsure = []
        self.generation = 0
        # by number, its place in the order of sets, and its attempts, if these are certain
        self.order = Order()
        self.attempts = {}
        # whether a power cut has left no doubt about the order
        self.is_order_exact = True
        # numbers that came from another queue: they never expire
        self.moved = set()
        # large items that were never synced; and of these, those that existed at a power cut
        self.unsynced = set()
        self.may_miss = set()

    def changed(self):
        """Note the state after a change."""
        self.history.append(self.held)

    @property
    def held(self):
        """The numbers of its items, negative for delayed ones, and its ids; None if there is no queue."""
        delayed = (-number for number in self.delayed)
        held = (*self.waiting, *self.reserved, *delayed, *self.ids.items())
        return frozenset(held) if self.exists else None

    def has_had(self, id, now):
        """Return whether a set with this id was stored within the window."""
        return id in self.ids and now - self.ids[id] < WINDOW_MS

    def may_hold(self, *, power_cut):
        """Return the states that may be found after a kill, or after a power cut."""
        if power_cut:
            return self.history[self.promised :] + self.unsure
        return self.unsure or self.history[-1:]

    def has(self, number, place):
        """Note an item that was put at the end."""
        self.waiting.append(number)
        self.order[number] = place
        self.attempts[number] = 0
        self.changed()

    def may_be(self, held, may, now):
        """Return whether the state `may` may be found as `held`: some large items may be missing."""
        if isinstance(may, Passing):
            return held is not None and may.fits(known(held, now), self.may_miss, now)
        if may is None or held is None:
            # a queue of which nothing was logged does not exist
            return not may and not held
        held = known(held, now)
        return held <= may and may_be_without(known(may, now) - held, self.may_miss)

    def found(self, numbers, delayed, ids, places):
        """Take over the numbers that were found, in order, and the ids; None if there is no queue. `places`
        gives those that nothing has had."""
        self.exists = numbers is not None
        self.waiting = list(numbers or ())
        if not self.is_order_exact:
            self.is_order_exact = True
            for number in self.waiting:
                self.order[number] = next(places)
        self.reserved = {}
        self.delayed = dict(delayed)
        self.ids = dict(ids)
        self.unsure = []
        self.generation += 1
        self.changed()
