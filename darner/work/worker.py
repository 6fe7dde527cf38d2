"""A worker, as a program has it."""

import asyncio
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import structlog

from darner.work.errors import WorkerError
from darner.work.observer import Nobody, Observer
from darner.work.process import work
from darner.work.settings import Settings
from darner.work.stopping import Stop, stopped_by_signals
from darner.work.supervisor import Supervisor

if TYPE_CHECKING:
    from darner.work.metrics import Metrics

log = structlog.get_logger()


class Worker(Settings):
    """A worker; its arguments are the settings, see `Settings`.

        Worker("darner://127.0.0.1", send_mail, queues=["mail"], concurrency=4).run()

    It logs by structlog, as the program has set that up.
    """

    def __post_init__(self) -> None:
        """Raise WorkerError or BadRequestError if a setting cannot be."""
        super().__post_init__()
        self._stop = Stop()

    def run(self) -> bool:
        """Work until SIGTERM, SIGINT, `stop` or `max_jobs`; return whether all that was in progress was
        finished.

        At the end nothing more is taken. What is in progress has the grace to be finished, and goes back if
        it is not. A second signal ends the process at once, with exit status 1. Signals are heeded in the
        main thread alone. Raises WorkerError if the function cannot be run, or a server refuses to serve
        this user.
        """
        function = self.load_function()
        metrics = (
            None if self.metrics_port is None else _metrics_class()(self.metrics_host, self.metrics_port)
        )
        log.info(
            "the worker is up", queues=",".join(self.queues), pool=self.pool, concurrency=self.concurrency
        )
        if metrics is not None:
            log.info("metrics", host=self.metrics_host, port=metrics.port)
        try:
            with stopped_by_signals(self._stop):
                all_finished = asyncio.run(self._run(function, metrics or Nobody()))
        finally:
            if metrics is not None:
                metrics.close()
        log.info("the worker has ended", finished="all" if all_finished else "not all")
        return all_finished

    def stop(self) -> None:
        """Have `run` return once what is in progress is finished; may be called in any thread."""
        self._stop.set()

    async def _run(self, function: Callable[[Any], object], observer: Observer) -> bool:
        if self.pool != "processes":
            return await work(self, function, observer, self._stop, advises=True)
        supervisor = Supervisor(
            Settings(**{each.name: getattr(self, each.name) for each in fields(self)}), observer
        )
        with self._stop.told_to(supervisor.stop):
            return await supervisor.run()


def _metrics_class() -> "type[Metrics]":
    try:
        # not at the top: it takes time and memory, and only few need it
        from darner.work.metrics import Metrics  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "prometheus_client":
            raise
        raise WorkerError("metrics need prometheus_client: pip install 'darner[metrics]'") from error
    return Metrics
