"""Reloading: what a running server takes over when it reads its configuration again."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import structlog

from darner.access.admission import Admission
from darner.access.credentials import read_tls, read_users
from darner.config.settings import Settings, needs_restart
from darner.errors import ConfigError
from darner.printable import shown
from darner.server.listeners import Listeners
from darner.wire.clients import Clients

log = structlog.get_logger()


class Reload:
    """The reload of one server: of the settings of queues, the certificates and the users."""

    def __init__(
        self,
        settings: Settings,
        read_settings: Callable[[], Settings],
        loop: asyncio.AbstractEventLoop,
        clients: Clients,
        admission: Admission,
        listeners: Listeners,
    ) -> None:
        """`settings` are those the server was started with; `read_settings` reads the configuration again,
        and raises ConfigError if it is wrong."""
        self._settings = settings
        self._read_settings = read_settings
        self._loop = loop
        self._clients = clients
        self._admission = admission
        self._listeners = listeners

    def by_signal(self) -> None:
        """Reload because of SIGHUP, in slices; errors are logged."""
        self._clients.run_in_slices(self._without_error())

    def _without_error(self) -> Iterator[None]:
        with contextlib.suppress(ConfigError):  # logged by `steps`
            yield from self.steps()

    def steps(self) -> Iterator[None]:
        """Reload, a step at a time: queues take over what is set for them, connections accepted from now on
        the certificates. Users who are gone or changed are disconnected.

        Raises ConfigError if something is wrong with the files; then nothing has changed.
        """
        try:
            settings = self._read_settings()
            context = read_tls(
                self._settings,
                self._admission.note_failed_handshake,
                self._admission.capacity.may_begin_handshake,
            )
            users = read_users(self._settings)
        except ConfigError as error:
            log.error("nothing reloaded, everything stays as it was", reason=str(error))
            raise
        self._admission.change_users(users)
        if context is not None:
            self._listeners.change_tls(context)
        steps = self._reconfigure_queues(settings)
        try:
            # no `yield from`, which would end the steps with this generator
            for _ in steps:
                yield
        except GeneratorExit:  # the client that asked for the reload has gone: finish it all the same
            self._loop.call_soon(self._clients.run_in_slices, steps)
            raise

    def _reconfigure_queues(self, settings: Settings) -> Iterator[None]:
        changed: list[bytes] = []
        yield from self._clients.broker.reconfigure(settings.queue, settings.aliases, changed)
        lists = {
            "changed": " ".join(sorted(map(shown, changed))),
            "needs_restart": " ".join(needs_restart(self._settings, settings)),
        }
        log.info("configuration reloaded", **{key: text for key, text in lists.items() if text})
