# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""One client: bytes in, commands out, replies in order, and what this client holds reserved.

No rule about queues lives here. A connection goes on parsing until something blocks it: a `get` that
waits, an item being sent out in chunks, a reader too slow for its replies. The replies to what arrived at
once gather in `out`, and go out in one write; unless one of them has to wait for the disk.
"""

import asyncio
import select
import socket
from collections.abc import Callable, Iterator
from time import time_ns
from typing import cast

import structlog

from darner._proto import Parser, Request, Verb, send
from darner.access.guard import Guard
from darner.errors import DarnerError, JournalError, StatusError
from darner.journal.blob import BlobReader, MemoryReader
from darner.journal.journal import Journal
from darner.queues.upload import Upload
from darner.queues.waiters import Waiter
from darner.wire.clients import Clients
from darner.wire.commands.items import Delivery, takes_item
from darner.wire.commands.table import TABLE
from darner.wire.holds import Holds
from darner.wire.replies import server_error

log = structlog.get_logger()

# How many requests of one connection are served before others have their turn, unless its time is over.
REQUESTS_PER_TURN = 512
# How many plain requests are served before it is asked how long that took.
REQUESTS_PER_LOOK = 64
# The last of the verbs that take little time, unless `expect_long` says otherwise.
LAST_PLAIN_VERB = int(Verb.SET_END)
# How many bytes of replies may gather before they must be sent.
OUT_BYTES = 256 << 10
# How many unparsed bytes are taken in from a client that is blocked before its reading stops. Some must
# be: a client that has gone is noticed by reading.
UNPARSED_BYTES = 64 << 10
# How long a client has to read the error that ends its connection, while what it sends is thrown away:
# closing at once would make TCP throw away the error.
LINGER_S = 2.0
# Probes to a silent peer: seconds between them, and how many stay unanswered before it counts as dead.
PROBE_INTERVAL_S = 10
PROBES = 3
# The first byte of what Linux knows of a TCP connection: both ends are open; it is reset; the peer has said
# that it sends no more.
TCP_ESTABLISHED = 1
TCP_CLOSE = 7
TCP_CLOSE_WAIT = 8

# Why a connection does not parse on.
WAITING = 1  # for an item
STREAMING = 2  # an item goes out in chunks
UPLOADING = 4  # what came of an item must be written before more is taken in
FULL = 8  # the client does not read its replies
YIELDING = 16  # others have their turn
FINISHED = 32  # nothing more is served


def now_ms() -> int:
    """Milliseconds of the Unix epoch."""
    ns = time_ns()
    return ns // 1_000_000


class Stream:
    """A large item on its way out, some chunks at a time, once they were found whole: its header, its bytes,
    a line end. Its file is opened when its turn comes."""

    __slots__ = ("_delivery", "blob", "header")

    def __init__(self, header: bytes, delivery: Delivery) -> None:
        self.blob: BlobReader | MemoryReader | None = None
        self.header = header
        self._delivery = delivery

    def begins(self, ready: Callable[[], None]) -> bool:
        """Whether it can be sent now; if not, `ready` is called when that is to be asked again. JournalError
        if it cannot be sent at all."""
        if self.blob is None:
            self.blob = self._open()
        if not self.blob.verify(ready):
            return False
        self._delivery.begin()
        return True

    def _open(self) -> BlobReader | MemoryReader:
        item, queue = self._delivery.item, self._delivery.queue
        if item.record is not None:
            reader = MemoryReader(item)
            if queue.is_reserved(item):
                queue.forget_data(item)
            return reader
        clients = self._delivery.connection.clients
        clients.take_file()
        try:
            return self._delivery.open()
        except BaseException:
            clients.give_file()
            raise

    def fail(self, error: JournalError) -> None:
        """It cannot be sent: have something else in its place."""
        self.close()
        self._delivery.fail(error)

    def abandon(self) -> None:
        """The client has gone."""
        self.close()
        if self.header:
            self._delivery.give_up()

    def read(self, ready: Callable[[], None]) -> bytes | None:
        """As `BlobReader.read`, once it has begun."""
        assert self.blob is not None
        return self.blob.read(ready)

    def close(self) -> None:
        """Let go of the file."""
        blob, self.blob = self.blob, None
        if blob is None:
            return
        blob.close()
        if isinstance(blob, BlobReader):
            self._delivery.connection.clients.give_file()


class Return:
    """What a client that has gone held, on its way back in slices. Only then the client is no more."""

    __slots__ = ("_connection", "_steps", "_window")

    def __init__(self, connection: "Connection", steps: Iterator[Journal | None]) -> None:
        self._connection = connection
        self._steps = steps
        self._window = 0

    def go_on(self) -> None:
        """Have the next ones go back."""
        clients = self._connection.clients
        budget = clients.budget
        self._window = budget.begin_turn(self._window)
        try:
            for journal in self._steps:
                if journal is not None:
                    journal.held_back.append(self)
                    return
                if budget.is_spent():
                    clients.loop.call_soon(self.go_on)
                    return
        except Exception:
            # a fault of ours: those that did not go back do so at the next start
            log.exception("items stay reserved by an internal error", peer=self._connection.peer)
        clients.leave(self._connection)

    def hold(self) -> None:
        """Nothing is held back."""

    def fail(self, slot: int, error: JournalError) -> None:
        """Nothing was promised."""

    def release(self) -> None:
        """Enough of them are written."""
        self._connection.clients.loop.call_soon(self.go_on)


class Connection:
    """The protocol of one client's connection; an `asyncio.Protocol`, but for its base: it is compiled."""

    __slots__ = (
        "_awake",
        "_blocked",
        "_buffered",
        "_descriptor",
        "_draining",
        "_ended",
        "_ending",
        "_held",
        "_is_timed",
        "_is_unread",
        "_linger",
        "_lost",
        "_more",
        "_parser",
        "_quiet",
        "_reading",
        "_rest",
        "_streams",
        "_time_out",
        "_timer",
        "_transport",
        "_unlooked",
        "_upload_request",
        "_waiter",
        "_window",
        "bare_keys",
        "broker",
        "budget",
        "clients",
        "counters",
        "guard",
        "holds",
        "idle_sweeps",
        "out",
        "out_bytes",
        "upload",
    )

    def __init__(self, clients: Clients) -> None:
        self.clients = clients
        self.broker = clients.broker
        self.counters = clients.counters
        self.budget = clients.budget
        self.bare_keys = clients.bare_keys
        # replies in order; the index of each is its slot
        self.out: list[bytes | Stream] = []
        # an estimate of their bytes: of the items among them
        self.out_bytes = 0
        # what this client has reserved
        self.holds = Holds()
        # the item it is sending in chunks, or why that came to nothing
        self.upload: Upload | DarnerError | None = None
        self._upload_request: Request | None = None
        self._parser = Parser()
        self._blocked = 0
        # how many writes in other threads the replies wait for
        self._held = 0
        # those of them that say nothing unless something goes wrong
        self._quiet: set[int] = set()
        # how many of the replies are streams
        self._streams = 0
        # how many more requests are served before it is asked how long that took
        self._unlooked = 0
        # whether the budget of this turn is begun
        self._is_timed = False
        # what the budget knows it by
        self._window = 0
        # whether `_wake` is about to be called
        self._awake = False
        # where replies are written to at once, and whether some of an earlier one still wait to be
        self._descriptor = -1
        self._buffered = False
        self._reading = True
        # whether a whole request may be among what is not parsed yet
        self._more = False
        # what is left to do of a request whose reply is long
        self._rest: Callable[[], None] | None = None
        # whether the client has said that it sends no more
        self._ended = False
        # whether it has said so behind what is not read yet
        self._ending = False
        # whether nobody reads the replies
        self._is_unread = False
        # whether the connection is no more
        self._lost = False
        # whether the server is closing, and waits only for the end of a data block
        self._draining = False
        self._linger = False
        # what its user may do; None is everything
        self.guard: Guard | None = None
        # how many sweeps for idle clients have found nothing asked for since
        self.idle_sweeps = 0
        # who waits here for an item, and how to answer that there is none
        self._waiter: Waiter | None = None
        self._time_out: Callable[[], None] | None = None
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take note of a new client."""
        self._transport = cast("asyncio.Transport", transport)
        self.clients.join(self)
        sock = transport.get_extra_info("socket")
        # what goes out over TLS goes through the transport
        if transport.get_extra_info("sslcontext") is None:
            self._descriptor = sock.fileno()
        if sock.family == socket.AF_UNIX:  # where who is dead is gone
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        interval = min(PROBE_INTERVAL_S, self.clients.keepalive)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
        if hasattr(socket, "TCP_KEEPIDLE"):  # macOS has it under another name
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, self.clients.keepalive)

    def data_received(self, data: bytes) -> None:
        """Take in what the client sent."""
        self.counters.bytes_read += len(data)
        self.idle_sweeps = 0
        blocked = self._blocked
        if blocked & FINISHED:
            return
        self._parser.feed(data)
        if blocked or self._held:
            self._more = True
            if self._parser.unparsed_bytes > UNPARSED_BYTES:
                self._reading = False
                self._transport.pause_reading()
        else:
            self._run()

    def eof_received(self) -> bool:
        """The client sends no more: it is served what it has asked for, but waits for nothing. Over TLS,
        where there is no half of a connection, nobody reads the replies: no item is taken for it any
        more."""
        self._ended = True
        if not self._transport.can_write_eof():
            self._is_unread = True
            self._rest = None
            self._drop_wait()
            if self._more and not self._blocked & ~YIELDING:
                # its last turn: the transport is about to be closed
                self._blocked &= ~YIELDING
                self._run()
        self._end_wait_now()
        if self._blocked & FINISHED:
            self.finish()
        self._touch()
        return not self._is_unread

    def connection_lost(self, _: Exception | None) -> None:
        """Put back what the client held and forget it."""
        self._blocked |= FINISHED
        self._descriptor = -1
        self._drop_wait()
        if isinstance(self.upload, Upload):
            self.upload.abandon()
        self._lost = True
        # it is not to know itself: that is not freed
        self._rest = None
        # the slots stay: the log may still have something to say of them
        for slot, reply in enumerate(self.out):
            if isinstance(reply, Stream):
                self.out[slot] = b""
                reply.abandon()
        Return(self, self.holds.release()).go_on()

    def pause_writing(self) -> None:
        """Stop serving a client that does not read."""
        self._blocked |= FULL

    def resume_writing(self) -> None:
        """Go on serving it."""
        self._blocked &= ~FULL
        self.idle_sweeps = 0
        self._touch()

    # Parsing and serving

    def _run(self) -> None:
        """Serve what has come, until something blocks, and send the replies."""
        left = REQUESTS_PER_TURN
        self._unlooked = REQUESTS_PER_LOOK
        self._is_timed = False
        rest = self._rest
        if rest is not None:
            self._rest = None
            self.expect_long()
            rest()
        parser = self._parser
        if self._ended and not self._is_unread and self._tcp_state() == TCP_CLOSE:
            # it had not closed one half alone: an answer to it was refused
            self._is_unread = True
        guarded = self.guard is not None or self._is_unread
        self._more = False
        while not self._blocked:
            request = parser.next_request()
            if request is None:
                break
            if request.verb > LAST_PLAIN_VERB:
                self.expect_long()
            if not guarded or (refusal := self._refusal(request)) is None:
                if request.meta is not None:
                    self.counters.cmd_meta += 1
                TABLE[request.verb](self, request)
            else:
                self._refuse(request, refusal)
            left -= 1
            self._unlooked -= 1
            if not left or self.out_bytes > OUT_BYTES or (self._unlooked <= 0 and self._is_spent()):
                self.counters.conn_yields += 1
                self._blocked |= YIELDING
                self._touch()
        if self._blocked:
            self._more = True
        self._settle()

    def _is_spent(self) -> bool:
        """Whether the turn has taken so long that others are to have theirs."""
        self._unlooked = REQUESTS_PER_LOOK
        if self._is_timed:
            return self.budget.is_spent()
        # so far it had plain requests alone, and few
        self._is_timed = True
        self._window = self.budget.begin_turn(self._window)
        return False

    def _refusal(self, request: Request) -> bytes | None:
        """What a request is answered with in place of being served; None if it is served."""
        if self._is_unread and takes_item(request):
            return b""
        return None if self.guard is None else self.guard.refusal(request)

    def _refuse(self, request: Request, refusal: bytes) -> None:
        self.reply(request, refusal, is_error=bool(refusal))
        if request.is_run and refusal:
            self._parser.skip_keys()

    def _touch(self) -> None:
        """Have what can go on now do so, soon."""
        if not self._awake:
            self._awake = True
            self.clients.loop.call_soon(self._wake)

    def _wake(self) -> None:
        self._awake = False
        # what goes through the transport, that alone knows whether it can
        if (self._descriptor < 0 or self._buffered) and self._transport.is_closing():
            self._lost = True
        try:
            self._blocked &= ~YIELDING
            self._settle()
            if self._more and not (self._blocked or self._held or self._lost):
                self._run()
        except Exception:
            # a fault of ours: it must cost no other client its replies
            log.exception("connection closed by an internal error", peer=self.peer)
            self.abort()

    def _settle(self) -> None:
        """Send what can be sent, and see to what that ends."""
        if self._held or self._lost:
            return
        if self.out and not self._blocked & FULL:
            self._send()
        blocked = self._blocked
        if blocked & FINISHED:
            if not self.out:
                self._close()
        elif not blocked:
            if not self._more and (self._ended or (self._draining and not self._parser.in_block)):
                self.finish()
            if not self._reading and self._parser.unparsed_bytes <= UNPARSED_BYTES:
                self._reading = True
                self._transport.resume_reading()

    def _send(self) -> None:
        out = self.out
        if self._streams:
            self._send_streams()
            return
        data: bytes = out[0] if len(out) == 1 else b"".join(out)  # type: ignore[arg-type, assignment]
        out.clear()
        self.out_bytes = 0
        if data:
            self.counters.bytes_written += len(data)
            self._write(data)

    def _write(self, data: bytes) -> None:
        """Write to the socket at once: the transport would do so only when all that has come from all
        clients is served, while they wait."""
        if self._buffered:
            self._buffered = self._transport.get_write_buffer_size() > 0
        if self._descriptor >= 0 and not self._buffered:
            try:
                sent = send(self._descriptor, data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._lose()
                return
            if sent == len(data):
                return
            data = data[sent:]
        self._buffered = True
        self._transport.write(data)

    def _lose(self) -> None:
        """The client has gone: nothing more is taken from a queue for it. Not everybody hears of that: who
        asks first has the socket's error, and to the others a reset looks like the end of what a client
        sends."""
        self._blocked |= FINISHED | FULL
        self._lost = True
        self._descriptor = -1
        self._transport.abort()

    def _send_streams(self) -> None:
        """Send replies until the client has enough for now."""
        out = self.out
        sent = 0
        waits = False
        try:
            while out and sent < OUT_BYTES and not self._blocked & FULL:
                reply = out[0]
                if isinstance(reply, bytes):
                    data: bytes | None = reply
                    del out[0]
                else:
                    data = self._begin(reply) if reply.header else self._go_on_with(reply)
                    if data is None:
                        waits = True
                        break
                if data:
                    sent += len(data)
                    self._write(data)
        except JournalError as error:
            # the client has half an item: it must not take it for a whole one
            log.error("item cut off, connection closed", peer=self.peer, reason=str(error))
            self._transport.abort()
            return
        self.counters.bytes_written += sent
        if not self._streams and not out:
            self.out_bytes = 0
            self._blocked &= ~STREAMING
        elif not waits and not self._blocked & FULL:
            self._touch()

    def _begin(self, stream: Stream) -> bytes | None:
        """What a stream begins with, None if that waits; b"" if something else is in its place."""
        try:
            if not stream.begins(self._touch):
                return None
        except JournalError as error:
            self._streams -= 1
            stream.fail(error)
            return b""
        header, stream.header = stream.header, b""
        return header

    def _go_on_with(self, stream: Stream) -> bytes | None:
        """What a stream goes on with, None if that waits."""
        data = stream.read(self._touch)
        if data == b"":
            stream.close()
            self._streams -= 1
            del self.out[0]
            return b"\r\n"
        return data

    # For commands.py, items.py and monitor.py

    def reply(self, request: Request, reply: bytes, *, is_error: bool = False) -> None:
        """Reply, unless the request wanted none; an error hidden so is counted. What `reply` is to a meta
        command, that says."""
        if request.noreply:
            self.counters.noreply_errors += is_error
            reply = b""
        elif request.meta is not None:
            reply = request.meta.answer(reply)
        self.out.append(reply)
        self.out_bytes += len(reply)

    def stream(self, header: bytes, delivery: Delivery) -> Stream:
        """Return a reply that sends an item some chunks at a time; requests behind it have to wait."""
        self._blocked |= STREAMING
        self._streams += 1
        return Stream(header, delivery)

    def expect_long(self) -> None:
        """What is done now may take long: have it asked behind it how much of the turn is left."""
        if not self._is_timed:
            self._is_timed = True
            self._window = self.budget.begin_turn(self._window)
        self._unlooked = 0

    @property
    def should_yield(self) -> bool:
        """Whether what takes long should `go_on` later: much has gathered that the client is to read first,
        or others have waited long enough."""
        return self.out_bytes > OUT_BYTES or self.budget.is_spent()

    def go_on(self, rest: Callable[[], None]) -> None:
        """Call `rest` when the replies so far are sent, and serve nothing else before."""
        self._rest = rest
        self._blocked |= YIELDING
        self._touch()

    def begin_wait(self, waiter: Waiter, timeout_ms: int, time_out: Callable[[], None]) -> None:
        """Serve nothing more until `end_wait`; call `time_out` if that takes longer than `timeout_ms`, or
        nobody would wait so long."""
        self._blocked |= WAITING
        self._waiter = waiter
        if self._ended or self._ending or self._draining:
            time_out()
        else:
            self._time_out = time_out
            self._timer = self.clients.loop.call_later(timeout_ms / 1000, time_out)

    def has_gone(self) -> bool:
        """Whether the client has gone, or waits no longer: reset the connection, which is told later, or
        closed its end behind bytes that are not read, which hide that."""
        if self._lost or self._transport.is_closing():
            return True
        if self._reading:
            return False
        state = self._tcp_state()
        if state == TCP_ESTABLISHED:
            return False
        if state == TCP_CLOSE_WAIT and self._transport.can_write_eof():
            self._ending = True
            self.clients.loop.call_soon(self._end_wait_now)
        else:
            self.clients.loop.call_soon(self._transport.abort)
        return True

    def _tcp_state(self) -> int:
        """How the connection stands, as far as the system says."""
        if not hasattr(socket, "TCP_INFO"):
            return TCP_ESTABLISHED
        if self._transport.is_closing():
            return TCP_CLOSE
        sock = self._transport.get_extra_info("socket")
        if sock.family == socket.AF_UNIX:
            ended = select.poll()
            ended.register(sock.fileno(), 0)
            return TCP_CLOSE if ended.poll(0) else TCP_ESTABLISHED
        try:
            state: int = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        except OSError:  # it is no TCP
            return TCP_ESTABLISHED
        return state

    def end_wait(self) -> None:
        """Go on."""
        self._forget_wait()
        self._blocked &= ~WAITING
        self._touch()

    def skip_keys(self) -> None:
        """What is left of a long get is not served: its end is said already."""
        self._parser.skip_keys()

    def _end_wait_now(self) -> None:
        """Whoever waits is answered as if the time were up."""
        if self._time_out is not None:
            self._time_out()

    def _drop_wait(self) -> None:
        """Wait no longer, and answer nothing."""
        if self._waiter is not None:
            self._waiter.cancel()
            self._forget_wait()
            self._blocked &= ~WAITING

    def _forget_wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._waiter = self._timer = self._time_out = None

    def begin_upload(self, request: Request, upload: Upload | DarnerError) -> None:
        """The chunks of an item follow, for `upload`; they are swallowed if that is an error."""
        self._upload_request = request
        self.upload = upload

    def end_upload(self) -> tuple[Request, Upload | DarnerError]:
        """The chunks have come; returns what `begin_upload` was given."""
        request, upload = self._upload_request, self.upload
        self._upload_request = self.upload = None
        return cast("Request", request), cast("Upload | DarnerError", upload)

    def wait_for_room(self, upload: Upload) -> None:
        """Take in no more chunks while enough of them wait to be written."""
        if upload.is_backlogged(self._room):
            self._blocked |= UPLOADING

    def _room(self) -> None:
        self._blocked &= ~UPLOADING
        self._touch()

    def begin_finish(self) -> None:
        """Serve and send nothing more until `end_finish`: the upload's reply is due first."""
        self._blocked |= UPLOADING
        self.hold()

    def end_finish(self) -> None:
        """Go on: the reply is in its place."""
        self._blocked &= ~UPLOADING
        self.release()

    def finish(self, *, linger: bool = False) -> None:
        """Serve no more requests; close when what was asked for is sent."""
        self._blocked |= FINISHED
        self._linger = linger
        self._touch()

    def _close(self) -> None:
        if not self._linger:
            self._transport.close()
        elif self._timer is None and not self._transport.is_closing():
            if self._transport.can_write_eof():
                self._transport.write_eof()
            self._timer = self.clients.loop.call_later(LINGER_S, self._transport.close)

    def drain(self) -> None:
        """The server closes: wait for nothing more but the end of a data block, send what is due, then
        close."""
        self._draining = True
        self._end_wait_now()
        self._touch()

    def refuse_wait(self, error: StatusError) -> None:
        """Who waits for an item is not to have one: say why."""
        if self._waiter is not None:
            self._drop_wait()
            self.out.append(server_error(error))
            self._touch()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    @property
    def waits(self) -> bool:
        """Whether a `get` of it waits for an item."""
        return self._waiter is not None

    @property
    def idles(self) -> bool:
        """Whether nothing is left to do but what the client has to begin: to ask, to send on, to read."""
        blocked = self._blocked
        return not self._held and (not blocked or blocked & FULL != 0)

    @property
    def peer(self) -> str:
        """The client's address, for the log."""
        address = self._transport.get_extra_info("peername")
        if self._transport.get_extra_info("socket").family == socket.AF_UNIX:
            return "unix socket"
        return f"{address[0]}:{address[1]}" if address else "gone"

    # Called by who writes to the disk

    def hold(self) -> None:
        """Send nothing until the matching `release`."""
        self._held += 1

    def release(self) -> None:
        """What replies wait for is settled."""
        self._held -= 1
        if not self._held:
            self._quiet.clear()
            self._touch()

    def keep_quiet(self, slot: int) -> None:
        """Reply `slot` is empty because all went well: if it turns out otherwise, that is said."""
        if self._held:
            self._quiet.add(slot)

    def fail(self, slot: int, error: JournalError) -> None:
        """What reply `slot` promised did not happen."""
        if self.out[slot] == b"" and slot not in self._quiet:
            self.counters.noreply_errors += 1
        else:
            self.out[slot] = server_error(error)
