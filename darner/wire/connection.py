# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""One client's connection: its bytes become requests, and each request is served by a command.

No rule about queues lives here, and no reply is written to a socket: see sending.py. A connection goes on
parsing until something blocks it: a `get` that waits, a large item on its way in or out, a client too slow
for its replies, or the end of its turn.
"""

import asyncio
from collections.abc import Callable
from typing import cast

import structlog

from darner._proto import Parser, Request, Verb
from darner._records import monotonic_ns
from darner.errors import StatusError
from darner.queues.waiters import Waiter
from darner.wire import peer
from darner.wire.clients import Clients, Guard, Incoming
from darner.wire.holds import Holds
from darner.wire.replies import server_error, takes_item
from darner.wire.returning import return_holds
from darner.wire.sending import Sender
from darner.wire.waiting import Wait

log = structlog.get_logger()

# How many requests of one connection are served before others have their turn, unless its time is over.
REQUESTS_PER_TURN = 512
# How many plain requests are served before it is checked how long that took.
REQUESTS_PER_CHECK = 64
# The last of the verbs that take little time, unless `expect_long_work` is called.
LAST_PLAIN_VERB = int(Verb.SET_END)
# It is timed how long the replies take to one in so many reads, the first among them: two looks at the clock
# are 1 % of a small request.
READS_PER_TIME = 8
# How many unparsed bytes are taken in from a client that is blocked before its reading stops. Some must
# be: that a client has disconnected is noticed by reading.
UNPARSED_BYTES = 64 << 10

# Why a connection serves no more requests for now. Bits of `_blocked`; what blocks sending is in `Sender`.
WAITING = 1  # for an item
UPLOADING = 2  # what came of a large item must be written before more is taken in
YIELDING = 4  # others have their turn
FINISHED = 8  # nothing more is served


class Connection:
    """The protocol of one client's connection; an `asyncio.Protocol`, but for its base: it is compiled."""

    __slots__ = (
        "_begun_ns", "_blocked", "_commands", "_continuation", "_eof_is_unread", "_has_unparsed",
        "_is_draining", "_is_reading", "_lingers", "_parser", "_reads", "_replies_are_unread", "_reply_times",
        "_requests_until_check", "_sends_no_more", "_transport", "_turn_is_timed", "_wait", "_wake_is_due",
        "_window", "bare_keys", "broker", "budget", "clients", "counters", "guard", "holds", "idle_sweeps",
        "incoming", "sender", "sinks", "sources",
    )  # fmt: skip

    def __init__(self, clients: Clients) -> None:
        self.clients = clients
        self.broker = clients.broker
        # where a set and a fetch look for their queue first
        self.sinks = clients.broker.sinks
        self.sources = clients.broker.sources
        self.counters = clients.counters
        self.budget = clients.budget
        self.bare_keys = clients.bare_keys
        # the functions that serve the verbs, which are numbers from 0 on
        self._commands = clients.commands
        # how long replies took, if that is counted; how often something has come; and since when, in ns, the
        # replies to that are due, if that is counted, or 0
        self._reply_times = clients.reply_times
        self._reads = 0
        self._begun_ns = 0
        # sends the replies
        self.sender = Sender(clients.counters, self._schedule_wake)
        # what this client has reserved
        self.holds = Holds()
        # the permissions of its user; None is all
        self.guard: Guard | None = None
        # how many sweeps for idle clients have found nothing asked for since the last request
        self.idle_sweeps = 0
        # the large item that the client is sending
        self.incoming: Incoming | None = None
        self._parser = Parser()
        self._blocked = 0
        # whether a whole request may be among what is not parsed yet
        self._has_unparsed = False
        # whether the transport reads
        self._is_reading = True
        # the rest of a request that takes more than one turn
        self._continuation: Callable[[], None] | None = None
        # whether `_wake` is about to be called
        self._wake_is_due = False
        # how many more requests are served before it is checked how long that took
        self._requests_until_check = 0
        # whether the budget knows of this turn, and what it gave for the last one
        self._turn_is_timed = False
        self._window = 0
        # whether the client has closed its half of the connection, and whether it did so behind bytes that
        # are not read yet
        self._sends_no_more = False
        self._eof_is_unread = False
        # whether nobody reads the replies
        self._replies_are_unread = False
        # whether the server is closing, and waits only for the end of a data block
        self._is_draining = False
        # whether the client has some time to read the last reply
        self._lingers = False
        # the wait for an item, if a command waits
        self._wait: Wait | None = None
        self._transport: asyncio.Transport

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take over a transport, of a client that is admitted."""
        self._transport = cast("asyncio.Transport", transport)
        self.clients.add(self)
        self.sender.connect(self._transport)
        peer.enable_keepalive(transport.get_extra_info("socket"), self.clients.keepalive)

    def data_received(self, data: bytes) -> None:
        """Take in what the client sent."""
        self.counters.bytes_read += len(data)
        self.idle_sweeps = 0
        blocked = self._blocked
        if blocked & FINISHED:
            return
        self._parser.feed(data)
        if blocked or self.sender.is_blocked() or self.sender.pending_writes:
            self._has_unparsed = True
            if self._parser.unparsed_bytes > UNPARSED_BYTES:
                self._is_reading = False
                self._transport.pause_reading()
        else:
            if self._reply_times is not None:
                if self._reads % READS_PER_TIME == 0:
                    self._begun_ns = monotonic_ns()
                self._reads += 1
            self._serve()

    def eof_received(self) -> bool:
        """Take note that the client sends no more: it is served what it has asked for, but waits for nothing.
        Over TLS a connection cannot be closed by half, so nobody reads the replies: no item is taken for it
        any more."""
        self._sends_no_more = True
        if not self._transport.can_write_eof():
            self._replies_are_unread = True
            self._continuation = None
            self._cancel_wait()
            if self._has_unparsed and not (self._blocked & ~YIELDING or self.sender.is_blocked()):
                # its last turn: the transport is about to be closed
                self._blocked &= ~YIELDING
                self._serve()
        self._expire_wait()
        if self._blocked & FINISHED:
            self.finish()
        self._schedule_wake()
        return not self._replies_are_unread

    def connection_lost(self, _: Exception | None) -> None:
        """Put back what the client held, and forget it."""
        self._blocked |= FINISHED
        self._cancel_wait()
        if self.incoming is not None:
            self.incoming.abandon()
            self.incoming = None
        # as the item, it may refer to the connection, which would then be freed by the collector alone
        self._continuation = None
        self.sender.abandon()
        return_holds(self.clients, self, self.holds.release())

    def pause_writing(self) -> None:
        """Stop serving: the client does not read its replies."""
        self.sender.pause()

    def resume_writing(self) -> None:
        """Serve on: the client has read enough."""
        self.sender.resume()
        self.idle_sweeps = 0
        self._schedule_wake()

    # Parsing and serving

    def _serve(self) -> None:
        """Serve the requests that have arrived, until something blocks, and send the replies."""
        left = REQUESTS_PER_TURN
        self._requests_until_check = REQUESTS_PER_CHECK
        self._turn_is_timed = False
        continuation = self._continuation
        if continuation is not None:
            self._continuation = None
            self.expect_long_work()
            continuation()
        parser = self._parser
        sender = self.sender
        if self._sends_no_more and not self._replies_are_unread:
            # closed in full, not by half: a reply to it was refused
            self._replies_are_unread = peer.tcp_state(self._transport) == peer.TCP_CLOSE
        is_guarded = self.guard is not None or self._replies_are_unread
        self._has_unparsed = False
        while not (self._blocked or sender.is_blocked()):
            request = parser.next_request()
            if request is None:
                break
            if request.verb > LAST_PLAIN_VERB:
                self.expect_long_work()
            if not is_guarded or (refusal := self._refusal(request)) is None:
                if request.meta is not None:
                    self.counters.cmd_meta += 1
                self._commands[request.verb](self, request)
            else:
                self._refuse(request, refusal)
            left -= 1
            self._requests_until_check -= 1
            if not left or sender.is_full() or (self._requests_until_check <= 0 and self._turn_is_over()):
                self.counters.conn_yields += 1
                self._blocked |= YIELDING
                self._schedule_wake()
        if self._blocked or sender.is_blocked():
            self._has_unparsed = True
        self._send_replies()

    def _turn_is_over(self) -> bool:
        """Return whether this turn has taken so long that others are to have theirs."""
        self._requests_until_check = REQUESTS_PER_CHECK
        if self._turn_is_timed:
            return self.budget.is_spent()
        # so far it had plain requests alone, and few
        self._turn_is_timed = True
        self._window = self.budget.begin_turn(self._window)
        return False

    def _refusal(self, request: Request) -> bytes | None:
        """Return what a request is answered with in place of being served; None if it is served."""
        if self._replies_are_unread and takes_item(request):
            return b""
        return None if self.guard is None else self.guard.refusal(request)

    def _refuse(self, request: Request, refusal: bytes) -> None:
        self.reply(request, refusal, is_error=bool(refusal))
        if request.is_run and refusal:
            self._parser.skip_keys()

    def _schedule_wake(self) -> None:
        """Have `_wake` called soon, once."""
        if not self._wake_is_due:
            self._wake_is_due = True
            self.clients.loop.call_soon(self._wake)

    def _wake(self) -> None:
        """Send and serve on, as far as nothing blocks that any more."""
        self._wake_is_due = False
        sender = self.sender
        sender.check_transport()
        try:
            self._blocked &= ~YIELDING
            self._send_replies()
            if self._has_unparsed and not (
                self._blocked or sender.is_blocked() or sender.pending_writes or sender.is_disconnected
            ):
                self._serve()
        except Exception:
            # a fault of ours: it must cost no other client its replies
            log.exception("connection closed by an internal error", peer=self.address)
            self.abort()

    def _send_replies(self) -> None:
        """Send the replies; then close the connection or read on, if only they were in the way."""
        sender = self.sender
        if sender.pending_writes or sender.is_disconnected:
            return
        if sender.replies and not sender.is_paused:
            sender.send()
            times = self._reply_times
            if times is not None and self._begun_ns:
                times.observe(monotonic_ns() - self._begun_ns)
            if sender.is_disconnected:
                self._blocked |= FINISHED
                return
        # what comes later waits for an item or for the client, which is no fault of ours
        self._begun_ns = 0
        blocked = self._blocked
        if blocked & FINISHED:
            if not sender.replies:
                sender.close(self.clients.loop, linger=self._lingers)
        elif not (blocked or sender.is_blocked()):
            if not self._has_unparsed and (
                self._sends_no_more or (self._is_draining and not self._parser.in_block)
            ):
                self.finish()
            if not self._is_reading and self._parser.unparsed_bytes <= UNPARSED_BYTES:
                self._is_reading = True
                self._transport.resume_reading()

    # Called by commands

    def reply(self, request: Request, reply: bytes, *, is_error: bool = False) -> None:
        """Reply, unless the request has `noreply`; an error that it hides is counted. For a meta command
        `reply` is translated."""
        if request.noreply:
            self.counters.noreply_errors += is_error
            reply = b""
        elif request.meta is not None:
            reply = request.meta.answer(reply)
        self.sender.replies.append(reply)
        self.sender.gathered_bytes += len(reply)

    def skip_keys(self) -> None:
        """Do not serve the rest of a long get: its end is in the replies already."""
        self._parser.skip_keys()

    def finish(self, *, linger: bool = False) -> None:
        """Serve no more requests, and close when what was asked for is sent. With `linger` the client has
        some time to read it."""
        self._blocked |= FINISHED
        self._lingers = linger
        self._schedule_wake()

    def block(self) -> None:
        """Serve nothing more until `unblock`: what has come of a large item must be written first."""
        self._blocked |= UPLOADING

    def unblock(self) -> None:
        """Serve on."""
        self._blocked &= ~UPLOADING
        self._schedule_wake()

    # Turns

    def expect_long_work(self) -> None:
        """Have it checked behind this request how much of the turn is left: it may take long."""
        if not self._turn_is_timed:
            self._turn_is_timed = True
            self._window = self.budget.begin_turn(self._window)
        self._requests_until_check = 0

    @property
    def should_yield(self) -> bool:
        """Whether a command that takes long should `continue_later`: the client has much to read first, or
        others have waited long enough."""
        return self.sender.is_full() or self.budget.is_spent()

    def continue_later(self, continuation: Callable[[], None]) -> None:
        """Call `continuation` when the replies so far are sent, and serve nothing else before."""
        self._continuation = continuation
        self._blocked |= YIELDING
        self._schedule_wake()

    # Waiting for an item

    def begin_wait(self, waiter: Waiter, timeout_ms: int, time_out: Callable[[], None]) -> None:
        """Serve nothing more until `end_wait`. Call `time_out` after `timeout_ms`, or at once if the client
        does not wait."""
        self._blocked |= WAITING
        self._wait = Wait(waiter, time_out)
        if self._sends_no_more or self._eof_is_unread or self._is_draining:
            time_out()
        else:
            self._wait.begin(self.clients.loop, timeout_ms)

    def end_wait(self) -> None:
        """Serve on: the reply is there."""
        wait, self._wait = self._wait, None
        if wait is not None:
            wait.end()
        self._blocked &= ~WAITING
        self._schedule_wake()

    def has_disconnected(self) -> bool:
        """Return whether the client has disconnected, or waits no longer; if so, the connection is closed, or
        its wait is ended. The system knows of a reset before the event loop tells of it, and the client may
        have closed its end behind bytes that are not read yet."""
        if self.sender.is_disconnected or self._transport.is_closing():
            return True
        if self._is_reading:
            return False
        state = peer.tcp_state(self._transport)
        if state == peer.TCP_ESTABLISHED:
            return False
        if state == peer.TCP_CLOSE_WAIT and self._transport.can_write_eof():
            self._eof_is_unread = True
            self.clients.loop.call_soon(self._expire_wait)
        else:
            self.clients.loop.call_soon(self._transport.abort)
        return True

    def refuse_wait(self, error: StatusError) -> None:
        """Answer a `get` that waits with this error."""
        if self._wait is not None:
            self._cancel_wait()
            self.sender.replies.append(server_error(error))
            self._schedule_wake()

    def _expire_wait(self) -> None:
        """Answer a `get` that waits as if its time were up."""
        if self._wait is not None:
            self._wait.expire()

    def _cancel_wait(self) -> None:
        """Wait no longer, and answer nothing."""
        wait, self._wait = self._wait, None
        if wait is not None:
            wait.cancel()
            self._blocked &= ~WAITING

    # Called by the server

    def drain(self) -> None:
        """Wait for nothing more but the end of a data block, send what is due, then close."""
        self._is_draining = True
        self._expire_wait()
        self._schedule_wake()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    @property
    def is_waiting(self) -> bool:
        """Whether a `get` of it waits for an item."""
        return self._wait is not None

    @property
    def is_idle(self) -> bool:
        """Whether the server has nothing left to do for it: the client is to ask, to send on, or to read."""
        sender = self.sender
        if sender.pending_writes:
            return False
        return sender.is_paused or not (self._blocked or sender.is_streaming)

    @property
    def address(self) -> str:
        """The client's address, for the log."""
        return peer.address_of(self._transport)
