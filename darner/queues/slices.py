"""Work on all queues, done in slices so that clients have their turn in between."""

from collections.abc import Callable

from darner.environment.environment import Environment

# How long a slice may take, while clients wait; and how long the work rests before the next slice.
SLICE_MS = 4
REST_MS = 10


class Slices:
    """A piece of work that is done slice by slice until none of it is left."""

    def __init__(
        self, environment: Environment, step: Callable[[], None], has_more: Callable[[], bool]
    ) -> None:
        """`step` works until the budget is spent; `has_more` says whether it has left anything."""
        self._environment = environment
        self._step = step
        self._has_more = has_more
        self._is_scheduled = False

    def run(self, step: Callable[[], None] | None = None) -> None:
        """Do a slice, and schedule the next one if work is left. The first slice may be another `step`."""
        self._environment.budget.begin(SLICE_MS)
        (step or self._step)()
        if self._has_more() and not self._is_scheduled:
            self._is_scheduled = True
            self._environment.call_later(REST_MS, self._continue)

    def _continue(self) -> None:
        self._is_scheduled = False
        self.run()
