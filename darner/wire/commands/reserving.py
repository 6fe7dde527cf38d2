"""The commands `monitor` and `confirm`: reserve several items, and remove them."""

import functools

from darner import _proto
from darner._proto import Request
from darner._records import CHUNK_BYTES, Item
from darner.errors import JournalError, NotReadyError, UnavailableError
from darner.queues.waiters import Source, Waiter
from darner.wire.commands.delivering import Delivery, large_header
from darner.wire.commands.fetching import key, send_item
from darner.wire.commands.slicing import is_behind_replies, retry
from darner.wire.connection import Connection
from darner.wire.replies import BAD_FORMAT, BAD_NAME, END, NOTHING_RESERVED, server_error


def monitor(connection: Connection, request: Request) -> None:
    """`monitor <queue> <seconds> [<max>]`: reserve items as they come."""
    name, *numbers = request.args or [b""]
    replies = connection.sender.replies
    if not 1 <= len(numbers) <= 2 or not all(number.isdigit() and len(number) < 10 for number in numbers):
        replies.append(BAD_FORMAT)
        return
    if not _proto.valid_name(name):
        replies.append(BAD_NAME)
        return
    seconds, *given = map(int, numbers)
    max_open_reads = connection.broker.settings(name).max_open_reads
    most = given[0] if given else max_open_reads
    left = min(most, max(most, max_open_reads) - connection.holds.count(name))
    Monitor(connection, request, seconds, left).advance()


def _reserve(queue: Source) -> Item | None:
    return queue.reserve()


class Monitor:
    """A `monitor` under way. Once it got an item that it waited for, it lines up again behind the others that
    wait."""

    __slots__ = ("_connection", "_deadline", "_error", "_left", "_request", "_source")

    def __init__(self, connection: Connection, request: Request, seconds: int, left: int) -> None:
        self._connection = connection
        self._request = request
        self._deadline = connection.clients.loop.time() + seconds
        # how many more items may come, and the error that ends it early
        self._left = left
        self._error: UnavailableError | None = None
        # where a fetch is under way that has no answer yet
        self._source: Source | None = None

    def advance(self) -> None:
        """Reserve and send what is there; then wait for more, or end."""
        connection = self._connection
        if is_behind_replies(connection, self.advance):
            return
        try:
            while self._left > 0 and connection.clients.loop.time() < self._deadline:
                queue = self._source or connection.broker.source(
                    self._request.queue,
                    takes=True,
                    waits=True,
                    has_disconnected=connection.has_disconnected,
                )
                if queue is None:
                    break
                self._source = queue
                item = queue.reserve()
                self._source = None
                if item is None:
                    self._wait(queue)
                    return
                if self._send(queue, item):
                    connection.continue_later(self.advance)
                    return
        except NotReadyError as error:
            retry(connection, error, self.advance)
            return
        except UnavailableError as error:
            self._error = error
        connection.sender.replies.append(END if self._error is None else server_error(self._error))

    def _wait(self, queue: Source) -> None:
        connection = self._connection
        waiter = Waiter(_reserve, self._deliver, connection.has_disconnected, self._fail)
        queue.wait(waiter)
        timeout_ms = max(0, int((self._deadline - connection.clients.loop.time()) * 1000))
        connection.begin_wait(waiter, timeout_ms, functools.partial(self._time_out, waiter))

    def _time_out(self, waiter: Waiter) -> None:
        if waiter.is_over:
            return  # an item is on its way to it
        waiter.cancel()
        self._connection.sender.replies.append(END)
        self._connection.end_wait()

    def _fail(self, error: JournalError) -> None:
        self._connection.sender.replies.append(server_error(error))
        self._connection.end_wait()

    def _deliver(self, queue: Source, item: Item) -> None:
        connection = self._connection
        connection.end_wait()
        if self._send(queue, item):
            connection.continue_later(self.advance)
        elif self._left > 0:
            self._wait(queue)
        else:
            connection.sender.replies.append(END)

    def _send(self, queue: Source, item: Item) -> bool:
        """Send an item just reserved; returns whether it is to go out before more are reserved."""
        connection, request = self._connection, self._request
        counters = connection.counters
        counters.cmd_get += 1
        counters.get_hits += 1
        queue.counts.transactions += 1
        connection.holds.add(queue, item)
        self._left -= 1
        if item.record is None or item.size > CHUNK_BYTES:
            delivery = MonitoredDelivery(self, connection, request, queue, item)
            header = large_header(request, queue, item, key(connection, request))
            delivery.send(header, is_one_of_many=False)
            return True
        send_item(connection, request, item)
        item.forget_data()
        return connection.should_yield

    def miss(self, error: JournalError | None) -> None:
        """Count out an item that could not be sent: go on with the next, or end with the error."""
        self._left = 0 if error is not None else self._left + 1
        self._error = error


class MonitoredDelivery(Delivery):
    """A large item that a `monitor` sends, which has reserved it."""

    __slots__ = ("_monitor",)

    def __init__(
        self, monitor: Monitor, connection: Connection, request: Request, queue: Source, item: Item
    ) -> None:
        super().__init__(connection, request, queue, item)
        self._monitor = monitor

    def begin(self) -> None:
        """Leave the item reserved."""

    def give_up(self) -> None:
        """Do nothing: the item goes back with all that is held."""

    def replace(self, error: JournalError | None) -> None:
        """Have the monitor reserve the next item, or end with the error."""
        counters = self.connection.counters
        counters.cmd_get -= 1
        counters.get_hits -= 1
        del self.connection.sender.replies[0]  # its END
        self._monitor.miss(error)


def confirm(connection: Connection, request: Request) -> None:
    """`confirm <queue> <count>`: remove those of the reserved items that were reserved first."""
    args = request.args
    if len(args) != 2 or not args[1].isdigit() or len(args[1]) > 9:
        connection.sender.replies.append(BAD_FORMAT)
        return
    _confirm(connection, args[0], int(args[1]), NOTHING_RESERVED)


def _confirm(connection: Connection, name: bytes, left: int, reply: bytes) -> None:
    if is_behind_replies(connection, functools.partial(_confirm, connection, name, left, reply)):
        return
    try:
        while left and connection.holds.close(name):
            left -= 1
            reply = END
            if connection.should_yield:
                connection.continue_later(functools.partial(_confirm, connection, name, left, reply))
                return
    except NotReadyError as error:
        retry(connection, error, functools.partial(_confirm, connection, name, left, reply))
        return
    except JournalError as error:
        reply = server_error(error)
    connection.sender.replies.append(reply)
