"""The model of the queues of a broker: plain lists, and the states that a power cut may leave.

A number stands for an item.
"""

import collections


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

    def fits(self, held, may_miss):
        """Return whether one of these states may be found as `held`; items in `may_miss` may be missing."""
        for count in range(len(self._joined) + 1):
            joined = frozenset(self._joined[:count])
            least = self._stays | (joined - self._gone) | {-number for number in self._joined[count:]}
            if held <= least | self._expired | joined and may_miss.issuperset(map(abs, least - held)):
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
        """The numbers of its items, negative for delayed ones; None if there is no queue."""
        delayed = (-number for number in self.delayed)
        return frozenset((*self.waiting, *self.reserved, *delayed)) if self.exists else None

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

    def may_be(self, held, may):
        """Return whether the state `may` may be found as `held`: some large items may be missing."""
        if isinstance(may, Passing):
            return held is not None and may.fits(held, self.may_miss)
        if may is None or held is None:
            # a queue of which nothing was logged does not exist
            return not may and not held
        return held <= may and self.may_miss.issuperset(map(abs, may - held))

    def found(self, numbers, delayed, places):
        """Take over the numbers that were found, in order; None if there is no queue. `places` gives those
        that nothing has had."""
        self.exists = numbers is not None
        self.waiting = list(numbers or ())
        if not self.is_order_exact:
            self.is_order_exact = True
            for number in self.waiting:
                self.order[number] = next(places)
        self.reserved = {}
        self.delayed = dict(delayed)
        self.unsure = []
        self.generation += 1
        self.changed()
