"""What is bound to exchanges, as all processes see it.

The table of an exchange is a queue that nobody empties. An item says that a queue was bound, or unbound; read
in order they give what is bound now. So a binding is kept once it is stored, and whoever has read the table
reads only what came behind the last item that he knows.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from kombu.utils.json import dumps, loads

from darner.client import protocol
from darner.kombu import names
from darner.kombu.server import Server

# How many items are asked for at once, when there are more than one.
_PAGE = 64


class Binding(NamedTuple):
    """That a queue gets the messages of an exchange with a routing key. A temporary queue ends by itself."""

    queue: str
    routing_key: str
    is_temporary: bool


@dataclass
class _Table:
    """A table as far as it was read: its last item, and each binding by the item that made it."""

    last_id: int = 0
    last: bytes = b""
    bound: dict[Binding, int] = field(default_factory=dict)


class Bindings:
    """The tables of the exchanges of one server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._tables: dict[str, _Table] = {}

    def of(self, exchange: str) -> list[Binding]:
        """Return what is bound to an exchange now. Raises as `Server.ask`."""
        table = self._read(exchange)
        temporary = [binding for binding in table.bound if binding.is_temporary]
        if temporary:
            figures = self._server.stats([names.encoded(binding.queue) for binding in temporary])
            for binding, found in zip(temporary, figures, strict=True):
                if not found:
                    # a message to it would make it again, for nobody
                    self.remove(exchange, binding)
        return list(table.bound)

    def add(self, exchange: str, binding: Binding) -> None:
        """Bind a queue, unless it is bound. Raises as `Server.ask`."""
        if binding not in self._read(exchange).bound:
            self._append(exchange, binding, is_bound=True)

    def remove(self, exchange: str, binding: Binding) -> None:
        """Unbind a queue, if it is bound. Raises as `Server.ask`."""
        if binding in self._read(exchange).bound:
            self._append(exchange, binding, is_bound=False)

    def _append(self, exchange: str, binding: Binding, *, is_bound: bool) -> None:
        data = dumps([*binding, is_bound]).encode()
        line = protocol.put_line(names.bindings(exchange), len(data))
        protocol.check(self._server.ask([b"%b%b\r\n" % (line, data)])[0], protocol.STORED)
        self._read(exchange)

    def _read(self, exchange: str) -> _Table:
        """Read what came behind the last item that is known, or all if that is gone."""
        table = self._tables.setdefault(exchange, _Table())
        key = names.bindings(exchange)
        page = 2
        while True:
            start = table.last_id
            found = self._page(key, start, page)
            if start and found.pop(start, None) != table.last:
                # somebody deleted it
                table = self._tables[exchange] = _Table()
                continue
            for id in sorted(found):
                self._apply(table, id, found[id])
            if len(found) < page - bool(start):
                return table
            page = _PAGE

    def _page(self, key: bytes, start: int, count: int) -> dict[int, bytes]:
        requests = [protocol.browse_line(key, max(start, 1) + number) for number in range(count)]
        values = [
            value
            for reply in self._server.ask(requests)
            for value in protocol.check(reply, protocol.END).values
        ]
        return {protocol.item_number(value.token): value.data for value in values}

    def _apply(self, table: _Table, id: int, data: bytes) -> None:
        table.last_id, table.last = id, data
        queue, routing_key, is_temporary, is_bound = loads(data)
        binding = Binding(queue, routing_key, is_temporary)
        if is_bound:
            table.bound[binding] = id
        else:
            table.bound.pop(binding, None)
