"""What is bound to exchanges, as all processes see it.

The table of an exchange is a queue that nobody empties. An item says that a queue was bound, or unbound; read
in order they give what is bound now. So a binding is kept once it is stored, and whoever has read the table
reads only what came behind the last item that he knows.
"""

from dataclasses import dataclass, field
from time import monotonic
from typing import NamedTuple

from kombu.utils.json import dumps, loads

from darner.client import protocol
from darner.kombu import names
from darner.kombu.server import Server

# How many items are asked for at once, when there are more than one.
_PAGE = 64
# How often it is seen whether temporary queues are still there, at most.
_CHECKED_S = 1.0
# How many items that no longer count are left alone.
_DEAD = 32


class Binding(NamedTuple):
    """That a queue gets the messages of an exchange with a routing key. A temporary queue ends by itself."""

    queue: str
    routing_key: str
    is_temporary: bool


@dataclass
class _Table:
    """A table as far as it was read: its last item, and the item that made each binding."""

    last_id: int = 0
    last: bytes = b""
    bound: dict[Binding, int] = field(default_factory=dict)
    # when it was last seen whether temporary queues are still there
    checked_at: float = 0.0
    # what was unbound since this was emptied
    unbound: set[Binding] = field(default_factory=set)


class Bindings:
    """The tables of the exchanges of one server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._tables: dict[str, _Table] = {}

    def of(self, exchange: str) -> list[Binding]:
        """Return what is bound to an exchange now. Raises as `Server.ask`."""
        table = self._read(exchange)
        if monotonic() - table.checked_at > _CHECKED_S:
            table.checked_at = monotonic()
            self._unbind_ended(exchange, [binding for binding in table.bound if binding.is_temporary])
        return list(table.bound)

    def add(self, exchange: str, binding: Binding) -> None:
        """Bind a queue, unless it is bound. Raises as `Server.ask`."""
        if binding not in self._read(exchange).bound:
            self._append(exchange, binding, is_bound=True)
            self._compact(exchange)

    def remove(self, exchange: str, binding: Binding) -> None:
        """Unbind a queue, if it is bound. Raises as `Server.ask`."""
        if binding in self._read(exchange).bound:
            self._append(exchange, binding, is_bound=False)

    def _unbind_ended(self, exchange: str, temporary: list[Binding]) -> None:
        children = [names.inbox_child(binding.queue) for binding in temporary]
        for binding, found in zip(temporary, self._server.stats(children) if children else (), strict=True):
            if not found:
                self.remove(exchange, binding)
                # a message may have come meanwhile, and made it again without a reader
                inboxes = [names.inbox(binding.queue, priority) for priority in range(names.MOST_URGENT + 1)]
                self._server.ask([protocol.delete_line(inbox) for inbox in inboxes])

    def _append(self, exchange: str, binding: Binding, *, is_bound: bool) -> None:
        data = dumps([*binding, is_bound]).encode()
        line = protocol.put_line(names.bindings(exchange), len(data))
        protocol.check(self._server.ask([b"%b%b\r\n" % (line, data)])[0], protocol.STORED)
        self._read(exchange)

    def _compact(self, exchange: str) -> None:
        """Remove what no longer counts from the head of a table, if that is most of it. What does count goes
        to the end: whoever reads from the start meanwhile finds it in one place at least."""
        table, key = self._tables[exchange], names.bindings(exchange)
        (figures,) = self._server.stats([key])
        for _ in range(min(figures.get("items", 0) - 2 * len(table.bound) - _DEAD, _PAGE)):
            reply = self._server.ask([protocol.get_line([key], b"/open")])[0]
            for value in protocol.check(reply, protocol.END).values:
                id = protocol.item_number(value.token)
                # by the last item others know whether the table is still the same
                ends = protocol.abort_line if id >= table.last_id else protocol.close_line
                binding = _entry(value.data)[0]
                if id < table.last_id and table.bound.get(binding) == id:
                    self._renew(exchange, binding)
                self._server.ask([ends(key, value.token)])

    def _renew(self, exchange: str, binding: Binding) -> None:
        table = self._tables[exchange]
        table.unbound.clear()
        self._append(exchange, binding, is_bound=True)
        if binding in table.unbound:
            # somebody unbound it before it was bound again
            self._append(exchange, binding, is_bound=False)

    def _read(self, exchange: str) -> _Table:
        """Read what came behind the last item that is known, or all if that is gone."""
        table = self._tables.setdefault(exchange, _Table())
        key = names.bindings(exchange)
        page = 2
        while True:
            start = table.last_id
            found, is_end = self._page(key, max(start, 1), page)
            if start and found.pop(start, None) != table.last:
                # somebody deleted it
                table = self._tables[exchange] = _Table()
                continue
            for id in sorted(found):
                self._apply(table, id, found[id])
            if is_end:
                return table
            page = _PAGE

    def _page(self, key: bytes, start: int, count: int) -> tuple[dict[int, bytes], bool]:
        """Return the items from an id on, by id, and whether these are all."""
        # each gives the first item from an id on, and most ids have one
        requests = [protocol.browse_line(key, start + number) for number in range(count)]
        replies = self._server.ask(requests)
        values = [value for reply in replies for value in protocol.check(reply, protocol.END).values]
        return {protocol.item_number(value.token): value.data for value in values}, not replies[-1].values

    def _apply(self, table: _Table, id: int, data: bytes) -> None:
        table.last_id, table.last = id, data
        binding, is_bound = _entry(data)
        if is_bound:
            table.bound[binding] = id
        elif table.bound.pop(binding, None) is not None:
            table.unbound.add(binding)


def _entry(data: bytes) -> tuple[Binding, bool]:
    queue, routing_key, is_temporary, is_bound = loads(data)
    return Binding(queue, routing_key, is_temporary), is_bound
