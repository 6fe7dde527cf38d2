"""TCP connections on loopback that can be cut, without root: nothing arrives until they are healed.

A cut is silent, as when a switch drops packets: connections stay open, new ones are accepted by the kernel
and get no answer. What was sent meanwhile arrives after a short cut, and never after one that has outlasted
the connections.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, cast

import uvloop


class _End(asyncio.Protocol):
    """One end of a connection through a link; what it reads is written to the other end."""

    transport: asyncio.Transport
    other: "_End | None" = None

    def __init__(self, link: "Link", *, is_accepted: bool) -> None:
        self._link = link
        self._is_accepted = is_accepted
        # uvloop reads a little before it heeds the first pause
        self._early = b""
        self._other_is_full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._link.ends.add(self)
        self.read_or_pause()
        if self._is_accepted:
            self._link.dial(self)

    def join(self, other: "_End") -> None:
        """Let bytes pass between this end and the one that the link has opened for it."""
        for end, far in ((self, other), (other, self)):
            end.other = far
            far.transport.write(end._early)
            end.read_or_pause()

    def read_or_pause(self) -> None:
        """Read only while there is another end that takes it, and no cut."""
        if self.transport.is_closing():
            return
        if self._link.is_cut or self._other_is_full or self.other is None:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self._early += data
        else:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other._other_is_full = True
            self.other.read_or_pause()

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other._other_is_full = False
            self.other.read_or_pause()

    def connection_lost(self, exc: Exception | None) -> None:
        self._link.ends.discard(self)
        if self.other is not None:
            self.other.transport.close()


class Link:
    """A port whose connections lead to another port, unless the link is cut."""

    is_cut = False

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self.target = target
        self.ends: set[_End] = set()
        self._whole = asyncio.Event()
        self._whole.set()
        self._dials: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        """Accept connections from now on."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _End(self, is_accepted=True), "127.0.0.1", self.port)

    def dial(self, end: _End) -> None:
        """Open the other end of a connection that has been accepted, once the link is whole."""
        dial = asyncio.get_running_loop().create_task(self._dial(end))
        self._dials.add(dial)
        dial.add_done_callback(self._dials.discard)

    async def _dial(self, accepted: _End) -> None:
        await self._whole.wait()
        loop = asyncio.get_running_loop()
        try:
            _, opened = await loop.create_connection(
                lambda: _End(self, is_accepted=False), "127.0.0.1", self.target
            )
        except OSError:
            accepted.transport.close()
            return
        if accepted.transport.is_closing():
            opened.transport.close()
        else:
            accepted.join(opened)

    def cut(self) -> None:
        """Let nothing through."""
        self.is_cut = True
        self._whole.clear()
        self._read_or_pause()

    def heal(self, *, loses: bool = False) -> None:
        """Let everything through again, what has waited first; if it `loses` that, only new connections."""
        if loses:
            for end in tuple(self.ends):
                end.transport.abort()
        self.is_cut = False
        self._whole.set()
        self._read_or_pause()

    def _read_or_pause(self) -> None:
        for end in tuple(self.ends):
            end.read_or_pause()

    async def close(self) -> None:
        """Close the port and every connection through it."""
        self._server.close()
        for dial in tuple(self._dials):
            dial.cancel()
        for end in tuple(self.ends):
            end.transport.abort()
        await asyncio.gather(*self._dials, return_exceptions=True)


class Links:
    """Links that a thread of their own serves."""

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._links: list[Link] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcp-links", daemon=True)
        self._thread.start()

    def open(self, port: int, target: int) -> Link:
        """Listen on a port of 127.0.0.1 whose connections lead to another one."""
        link = Link(port, target)
        self._run(link.listen())
        self._links.append(link)
        return link

    def cut(self, *links: Link) -> None:
        """Cut these links; nothing more passes once this has returned."""
        self._run(_each(Link.cut, links))

    def heal(self, *links: Link, loses: bool = False) -> None:
        """Heal these links; with `loses`, their connections end, and what has waited in them is lost."""
        self._run(_each(lambda link: link.heal(loses=loses), links))

    def close(self) -> None:
        """Close every port and connection."""
        for link in self._links:
            self._run(link.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


async def _each(do: Callable[[Link], None], links: Iterable[Link]) -> None:
    for link in links:
        do(link)


@contextlib.contextmanager
def tcp_links() -> Iterator[Links]:
    """Serve links until the end."""
    links = Links()
    try:
        yield links
    finally:
        links.close()
