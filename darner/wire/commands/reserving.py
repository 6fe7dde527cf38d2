"""What `monitor` and `confirm` do: reserve several items, and remove them."""

import functools
from typing import TYPE_CHECKING

from darner import _proto
from darner._proto import Request
from darner._records import CHUNK_BYTES, Item
from darner.errors import JournalError, MendingError, UnavailableError
from darner.queues.waiters import Source, Waiter
from darner.wire.commands.items import Delivery, retry, send_item, send_large
from darner.wire.replies import BAD_FORMAT, BAD_NAME, END, NOTHING_RESERVED, server_error

if TYPE_CHECKING:
    from darner.wire.connection import Connection


def monitor(connection: "Connection", request: Request) -> None:
    """`monitor <queue> <seconds> [<max>]`: reserve items as they come."""
    name, *numbers = request.args or [b""]
    if not 1 <= len(numbers) <= 2 or not all(number.isdigit() and len(number) < 10 for number in numbers):
        connection.out.append(BAD_FORMAT)
        return
    if not _proto.valid_name(name):
        connection.out.append(BAD_NAME)
        return
    seconds, *given = map(int, numbers)
    max_open_reads = connection.broker.settings(name).max_open_reads
    most = given[0] if given else max_open_reads
    left = min(most, max(most, max_open_reads) - connection.holds.count(name))
    Monitor(connection, request, seconds, left).go_on()


def _reserve(queue: Source) -> Item | None:
    return queue.reserve()


class Monitor:
    """A `monitor` under way. Who waits for an item gets one, and then queues up anew behind the others."""

    __slots__ = ("_connection", "_deadline", "_error", "_left", "_request")

    def __init__(self, connection: "Connection", request: Request, seconds: int, left: int) -> None:
        self._connection = connection
        self._request = request
        self._deadline = connection.clients.loop.time() + seconds
        # how many more items may come, and why none does
        self._left = left
        self._error: UnavailableError | None = None

    def go_on(self) -> None:
        """Send what is there; then wait for more, or end."""
        connection = self._connection
        out = connection.out
        try:
            while self._left > 0 and connection.clients.loop.time() < self._deadline:
                queue = connection.broker.routes.source(self._request.queue, takes=True, waits=True)
                if queue is None:
                    break
                item = queue.reserve()
                if item is None:
                    self._wait(queue)
                    return
                if self._send(queue, item):
                    connection.go_on(self.go_on)
                    return
        except MendingError as error:
            retry(connection, error, self.go_on)
            return
        except UnavailableError as error:
            self._error = error
        out.append(END if self._error is None else server_error(self._error))

    def _wait(self, queue: Source) -> None:
        connection = self._connection
        waiter = Waiter(_reserve, self._deliver, connection.has_gone, self._fail)
        queue.wait(waiter)
        timeout_ms = max(0, int((self._deadline - connection.clients.loop.time()) * 1000))
        connection.begin_wait(waiter, timeout_ms, functools.partial(self._time_out, waiter))

    def _time_out(self, waiter: Waiter) -> None:
        waiter.cancel()
        self._connection.out.append(END)
        self._connection.end_wait()

    def _fail(self, error: JournalError) -> None:
        self._connection.out.append(server_error(error))
        self._connection.end_wait()

    def _deliver(self, queue: Source, item: Item) -> None:
        connection = self._connection
        connection.end_wait()
        if self._send(queue, item):
            connection.go_on(self.go_on)
        elif self._left > 0:
            self._wait(queue)
        else:
            connection.out.append(END)

    def _send(self, queue: Source, item: Item) -> bool:
        """Send an item just reserved; returns whether that should go out before more is taken."""
        connection = self._connection
        counters = connection.counters
        counters.cmd_get += 1
        counters.get_hits += 1
        queue.counts.transactions += 1
        connection.holds.add(queue, item)
        self._left -= 1
        if item.record is None or item.size > CHUNK_BYTES:
            send_large(MonitoredDelivery(self, connection, self._request, queue, item))
            return True
        send_item(connection, self._request, item)
        queue.forget_data(item)
        return connection.should_yield

    def miss(self, error: JournalError | None) -> None:
        """An item just sent was not to be had: go on with the next, or end with the error."""
        self._left = 0 if error is not None else self._left + 1
        self._error = error


class MonitoredDelivery(Delivery):
    """As `Delivery`, to a `monitor`: the item is reserved."""

    __slots__ = ("_monitor",)

    def __init__(
        self, monitor: Monitor, connection: "Connection", request: Request, queue: Source, item: Item
    ) -> None:
        super().__init__(connection, request, queue, item)
        self._monitor = monitor

    def begin(self) -> None:
        """The item is whole, and about to be sent."""

    def give_up(self) -> None:
        """The item will not be sent; what is held goes back by itself."""

    def replace(self, error: JournalError | None) -> None:
        """Have the monitor go on."""
        counters = self.connection.counters
        counters.cmd_get -= 1
        counters.get_hits -= 1
        del self.connection.out[0]  # its END
        self._monitor.miss(error)


def confirm(connection: "Connection", request: Request) -> None:
    """`confirm <queue> <count>`: remove those of the reserved items that were reserved first."""
    args = request.args
    if len(args) != 2 or not args[1].isdigit() or len(args[1]) > 9:
        connection.out.append(BAD_FORMAT)
        return
    _confirm(connection, args[0], int(args[1]), NOTHING_RESERVED)


def _confirm(connection: "Connection", name: bytes, left: int, reply: bytes) -> None:
    try:
        while left and connection.holds.close(name):
            left -= 1
            reply = END
            if connection.should_yield:
                connection.go_on(functools.partial(_confirm, connection, name, left, reply))
                return
    except JournalError as error:
        reply = server_error(error)
    connection.out.append(reply)
