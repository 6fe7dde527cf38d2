"""Sweeps: what time brings to queues, such as items that expire, are due, or were reserved for too long."""

from collections import deque
from collections.abc import Callable

from darner.environment.environment import Environment
from darner.environment.timeline import Timeline
from darner.errors import JournalError, NotReadyError
from darner.queues import events
from darner.queues.queue import Queue
from darner.queues.registry import Registry
from darner.queues.slices import Slices
from darner.queues.space import Space
from darner.queues.storage import Storage
from darner.queues.transfers import Transfers


class Sweeping:
    """Sweeps the queues for which time may bring something to do, in turn."""

    def __init__(
        self,
        environment: Environment,
        storage: Storage,
        space: Space,
        registry: Registry,
        transfers: Transfers,
        times: Timeline,
    ) -> None:
        self._environment = environment
        self._storage = storage
        self._space = space
        self._registry = registry
        self._transfers = transfers
        self._times = times
        self.queues: dict[Queue, None] = {}
        # those of them whose turn in this round is still to come
        self._round: deque[Queue] = deque()
        self._slices = Slices(environment, self._sweep_slice, lambda: bool(self._round))
        # by the names of queues, why they could not be swept, which was logged
        self._logged: dict[bytes, str] = {}
        # called with a queue that is to be deleted, for nobody has used it for long
        self.on_outdated: Callable[[Queue], None] = lambda _: None

    def add(self, queue: Queue) -> None:
        """Sweep `queue` from now on, until time brings nothing more to it. A deleted queue is not swept."""
        if self._registry.queues.get(queue.name) is queue:
            self.queues[queue] = None

    def remove(self, queue: Queue) -> None:
        """Sweep `queue` no longer."""
        self.queues.pop(queue, None)

    def forget(self, name: bytes) -> None:
        """Forget about the queue `name`, which was deleted."""
        self._logged.pop(name, None)

    def tick(self) -> None:
        """Sweep some queues, in a new round if the last one has ended; to be called a few times a second."""
        if not self._round:
            self._round.extend(self.queues)
        self._slices.run()

    def _sweep_slice(self) -> None:
        """Sweep queues until the budget is spent; those with more to do have another turn in this round."""
        unfinished = []
        while self._round:
            queue = self._round.popleft()
            if queue in self.queues:  # not deleted meanwhile
                self._sweep(queue)
                if queue.has_more_upkeep:
                    unfinished.append(queue)
            if self._environment.budget.is_spent():
                break
        self._round.extend(unfinished)

    def _sweep(self, queue: Queue) -> None:
        try:
            has_children = self._registry.has_children(queue.name)
            if queue.is_outdated(self._times.now(), has_children=has_children):
                self.on_outdated(queue)
                return
            accepts = queue.journal.failing is None and self._storage.log.segment.refusal is None
            queue.sweep(may_join=self._space.may_move and accepts)
            self._logged.pop(queue.name, None)
        except NotReadyError:  # it is swept again when it can be read on
            pass
        except JournalError as error:
            # why a move fails is logged already
            if not self._transfers.is_failing(queue.name) and self._logged.get(queue.name) != str(error):
                self._logged[queue.name] = str(error)
                events.log_failure(queue.journal, error)
        except Exception as error:  # the others are to be swept
            self._storage.committer.set_aside(queue.journal, error)
        if not queue.needs_upkeep:
            self.queues.pop(queue, None)
