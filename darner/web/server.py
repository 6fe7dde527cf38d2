"""The process of the page: it listens, watches the servers, and ends by a signal."""

import asyncio
import contextlib
import ipaddress
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from darner.client.url import parse_all
from darner.errors import ConfigError, StartError
from darner.web.acts import ACTS, Acts
from darner.web.asking import Asking
from darner.web.guard import LOCAL_NAMES, Guard, Handler
from darner.web.history import Histories
from darner.web.pages import Pages
from darner.web.site import Site
from darner.web.watch import Watch

log = structlog.get_logger()

# A text that is put on a queue, and all else that a form has.
MAX_FORM_BYTES = 1 << 20
# So many browsers may be connected, and a connection has so many seconds for the first request.
CONNECTIONS = 128
REQUEST_S = 10.0
# So often it is looked for those that have not asked.
SWEEP_S = 1.0
# One that has asked is kept for so many seconds.
KEEP_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the page is to run. `listen` is host and port."""

    servers: Sequence[str]
    listen: tuple[str, int]
    logins: Mapping[str, str] = field(default_factory=dict, repr=False)
    names: Sequence[str] = ()
    allows_changes: bool = False
    # for the servers, and for browsers
    tls: ssl.SSLContext | None = None
    own_tls: ssl.SSLContext | None = None


async def serve(settings: Settings) -> None:
    """Serve the page until SIGTERM or SIGINT.

    ConfigError if others could look at it without a login; OSError if it cannot listen; BadRequestError if a
    server's address is wrong.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with _running(settings):
        await stop.wait()


@contextlib.asynccontextmanager
async def _running(settings: Settings) -> AsyncIterator[None]:
    parse_all(settings.servers)  # each is named once
    sockets = await _listen(*settings.listen)
    is_local = all(ipaddress.ip_address(each.getsockname()[0]).is_loopback for each in sockets)
    if not is_local and not settings.logins:
        raise ConfigError(f"{settings.listen[0]}: others could look at your items, so give --login FILE")
    if settings.logins and not is_local and settings.own_tls is None:
        log.warning("passwords can be read on the way: give --tls-cert and --tls-key, or put TLS in front")
    names = set(map(str.lower, settings.names))
    if is_local:
        names |= LOCAL_NAMES
    histories = Histories()
    watches = [Watch(Asking(url, settings.tls), histories) for url in settings.servers]
    guard = Guard(settings.logins, names)
    site = Site({watch.asking.name: watch for watch in watches})
    pages = Pages(site, histories, tuple(ACTS) if settings.allows_changes else ())
    connections = _Connections()
    application = web.Application(
        middlewares=[connections.note_request, guard.check], client_max_size=MAX_FORM_BYTES
    )
    application.add_routes(pages.routes())
    application.add_routes(Acts(site, guard, allows_changes=settings.allows_changes).routes())
    runner = web.AppRunner(application, access_log=None, keepalive_timeout=KEEP_S)
    await runner.setup()
    connections.server = runner.server
    loop = asyncio.get_running_loop()
    listeners = [
        await loop.create_server(connections.connected, sock=each, ssl=settings.own_tls) for each in sockets
    ]
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(each) for each in (connections.close_silent(), *(w.run() for w in watches))
        ]
        for each in sockets:
            host, port = each.getsockname()[:2]
            scheme = "http" if settings.own_tls is None else "https"
            at = f"[{host}]" if ":" in host else host
            log.info("the page is up", url=f"{scheme}://{at}:{port}/", changes=settings.allows_changes)
        try:
            yield
        finally:
            for listener in listeners:
                listener.close()
            await runner.cleanup()
            for task in tasks:
                task.cancel()
            for watch in watches:
                await watch.asking.close()


async def _listen(host: str, port: int) -> list[socket.socket]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
        return [socket.create_server(address[:2], family=family) for family, address in addresses]
    except OSError as error:
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror}") from error


class _Connections:
    """The connections of browsers: they are not too many, and none is silent for ever."""

    def __init__(self) -> None:
        self.server: web.Server | None = None
        # those from which no request has come yet, and when they came
        self._silent: dict[RequestHandler, float] = {}

    def connected(self) -> asyncio.Protocol:
        """Return the protocol of a new connection."""
        assert self.server is not None
        if len(self.server.connections) >= CONNECTIONS:
            return _Refused()
        handler = self.server()
        self._silent[handler] = time.monotonic()
        return handler

    @web.middleware
    async def note_request(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Take note that the head of a request has come, and go on."""
        self._silent.pop(request.protocol, None)
        return await handler(request)

    async def close_silent(self) -> None:
        """Close those that are silent for too long, and forget those that are gone, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now = time.monotonic()
            for handler, since in list(self._silent.items()):
                if now > since + (REQUEST_S if handler.transport is not None else SWEEP_S):
                    del self._silent[handler]
                    handler.force_close()


class _Refused(asyncio.Protocol):
    """A connection that is one too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close it."""
        transport.close()
