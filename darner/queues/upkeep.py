"""Upkeep: what a server does by itself, a few times a second, for all queues."""

from collections.abc import Callable
from typing import cast

import structlog

from darner.environment.environment import Environment
from darner.errors import JournalError
from darner.journal.disk_reserve import is_full
from darner.queues.clock_runs import Runs
from darner.queues.configuring import Configuring
from darner.queues.deletion import Deletion
from darner.queues.opening import Opening
from darner.queues.routes import Routes
from darner.queues.slices import Slices
from darner.queues.space import Space
from darner.queues.storage import Storage
from darner.queues.sweeping import Sweeping

log = structlog.get_logger()


class Upkeep:
    """The steps of a tick. One that fails keeps no other from being done, and is tried again."""

    def __init__(
        self,
        environment: Environment,
        storage: Storage,
        runs: Runs,
        routes: Routes,
        space: Space,
        opening: Opening,
        deletion: Deletion,
        sweeping: Sweeping,
        configuring: Configuring,
    ) -> None:
        self._environment = environment
        self._storage = storage
        self._runs = runs
        self._routes = routes
        self._space = space
        self._opening = opening
        self._deletion = deletion
        self._sweeping = sweeping
        self._configuring = configuring
        committer = storage.committer
        self._writes = Slices(
            environment, lambda: self._take_step("writes", committer.go_on), lambda: committer.has_more
        )
        # the steps that failed the last time, which was logged
        self._failed: set[str] = set()
        # whether the log takes nothing in, which was logged
        self._is_log_refusing = False

    def tick(self) -> None:
        """Do what has become due, and a slice of each kind of work that no client waits for."""
        for what, step in {
            "clock": lambda: self._runs.follow(self._environment.offload),
            "status": self._routes.enforce_status,
            "room on the disk": self._space.tick,
            "log": self._storage.log.tick,
            "refusal": self._report_log_refusal,
            "writes": lambda: self._writes.run(self._storage.committer.tick),
            "queues out of service": self._opening.retry,
            "deleted queues": self._deletion.tick,
            "settings": self._configuring.tick,
            "sweep": self._sweeping.tick,
        }.items():
            self._take_step(what, step)

    def _take_step(self, what: str, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception:
            if what not in self._failed:
                self._failed.add(what)
                log.exception(
                    "internal error in what the server does by itself; it is tried again", part=what
                )
        else:
            self._failed.discard(what)

    def _report_log_refusal(self) -> None:
        refusal = cast("JournalError | None", self._storage.log.segment.refusal)
        if refusal is not None and self._space.refusal is not None and is_full(refusal):
            refusal = None  # that the disk is full is logged
        if (refusal is not None) == self._is_log_refusing:
            return
        self._is_log_refusing = refusal is not None
        if refusal is not None:
            log.error(
                "log failure, no queue takes anything in",
                reason=refusal.reason,
                action=refusal.action,
            )
        else:
            log.warning("log back in service, sets are taken")
