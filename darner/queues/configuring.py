"""Settings of queues that are made at run time: they are kept in the journal of their queue."""

from collections.abc import Iterator, Sequence
from typing import Any

from darner.config import words
from darner.environment.environment import Environment
from darner.errors import ConfigError
from darner.queues.factory import QueueFactory
from darner.queues.registry import Registry
from darner.queues.routes import Routes
from darner.queues.slices import Slices


class Configuring:
    """Changes what is set for queues at run time, and has their children take it over."""

    def __init__(
        self, environment: Environment, factory: QueueFactory, registry: Registry, routes: Routes
    ) -> None:
        self._factory = factory
        self._registry = registry
        self._routes = routes
        # queues whose settings may be others by now
        self._stale: dict[bytes, None] = {}
        self._slices = Slices(environment, self._renew_slice, lambda: bool(self._stale))
        self._budget = environment.budget

    def configure(self, name: bytes, arguments: Sequence[bytes]) -> Iterator[None]:
        """Change what is set for the queue `name`, made if it does not exist, then have it and its children
        take it over, one a step. `arguments` are as for `words.changed`.

        Raises ConfigError if one of them is wrong, or the configuration file has something else for it, and
        JournalError or StatusError if it cannot be kept: then no setting has changed.
        """
        self._routes.check_sets()
        factory = self._factory
        values = words.changed(factory.configured.get(name, {}), arguments)
        words.check(self._routes.aliases, name, values)
        self._check_precedence(name, values, words.changed({}, arguments))
        queue = self._registry.queue(name)
        kept = words.encode(values)
        if kept != queue.journal.settings:
            queue.journal.keep_settings(kept)
            factory.configured[name] = values
            self.renew(name)
        return self.steps()

    def _check_precedence(self, name: bytes, values: dict[str, Any], asked: dict[str, Any]) -> None:
        """Raise ConfigError if the configuration file has something else than one of the values `asked` for,
        which are some of `values`."""
        factory = self._factory
        found = factory.settings_source(name, {**factory.configured, name: values})
        for field, value in asked.items():
            by_file = getattr(found, field)
            if by_file != value:
                ((key, word),) = words.words({field: by_file})
                raise ConfigError(f"{key} is {word} by the configuration file, which decides")

    def forget(self, name: bytes) -> None:
        """Forget what was set for the queue `name`, which was deleted."""
        if self._factory.configured.pop(name, None):
            self.renew(name)

    def renew(self, name: bytes) -> None:
        """Have the queue `name` and its children take over their settings, in `steps`."""
        self._stale |= dict.fromkeys((name, *self._registry.children(name)))

    def steps(self) -> Iterator[None]:
        """Have queues take over their settings, one a step, until none is left that has to."""
        while self._stale:
            name, _ = self._stale.popitem()
            queue = self._registry.queues.get(name)
            if queue is not None:
                settings = self._factory.settings_for(name)
                if settings != queue.settings:
                    queue.configure(settings)
                    self._routes.forget(name)
            yield

    def tick(self) -> None:
        """Take steps that are left, in slices; to be called a few times a second."""
        if self._stale:
            self._slices.run()

    def _renew_slice(self) -> None:
        for _ in self.steps():
            if self._budget.is_spent():
                break
