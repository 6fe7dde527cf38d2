# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""Sending the replies of one connection: in the order of the requests, no faster than the client reads, and
not before what they promise is on the disk.

No request is parsed or served here. The replies to what arrived at once gather in `Sender.replies`, and go
out in one write. Among them may be streams, which are large items that are sent slice by slice.
"""

import asyncio
from collections.abc import Callable

import structlog

from darner._proto import send
from darner.errors import DarnerError, JournalError
from darner.queues.pending import Pending
from darner.wire import peer
from darner.wire.counters import Counters
from darner.wire.replies import not_stored
from darner.wire.streaming import Stream

log = structlog.get_logger()

# How many bytes of replies may gather before they are sent, and how many are sent of streams before other
# connections have their turn.
MAX_GATHERED_BYTES = 256 << 10
# How long, in seconds, a client has to read the error that ends its connection, while what it sends is thrown
# away: closing at once would make TCP throw away the error.
LINGER_S = 2.0


def _ignore() -> None:
    """Do nothing."""


class Sender:
    """The replies of one connection, and their way to the socket.

    A reply is known by its slot, its index in `replies`. While writes to the disk are pending, a reply may
    still be replaced by an error, so none is sent. To the queues and the log a `Sender` is the client that
    waits for such a write: they call `hold`, `release` and `fail`.
    """

    __slots__ = (
        "_counters",
        "_descriptor",
        "_is_buffered",
        "_linger_timer",
        "_on_ready",
        "_streams",
        "_transport",
        "gathered_bytes",
        "is_disconnected",
        "is_paused",
        "is_streaming",
        "pending_writes",
        "replies",
    )

    def __init__(self, counters: Counters, on_ready: Callable[[], None]) -> None:
        """`on_ready` is called when more can be sent or served; `send` is to be called soon after that."""
        self._counters = counters
        self._on_ready = on_ready
        # in the order of the requests
        self.replies: list[bytes | Stream] = []
        # an estimate of their bytes: of the items among them
        self.gathered_bytes = 0
        # how many writes to the disk the replies wait for
        self.pending_writes = 0
        # how many of the replies are streams, and whether one, or a reply behind it, is still to be sent
        self._streams = 0
        self.is_streaming = False
        # whether the transport has more in its buffer than it should: the client does not read
        self.is_paused = False
        # whether nothing can be sent any more
        self.is_disconnected = False
        # closes the connection once the client had time to read the last reply
        self._linger_timer: asyncio.TimerHandle | None = None
        # the socket to write to directly, and whether the transport still has some of an earlier reply
        self._descriptor = -1
        self._is_buffered = False
        self._transport: asyncio.Transport

    def connect(self, transport: asyncio.Transport) -> None:
        """Send to this transport from now on."""
        self._transport = transport
        # TLS has to encrypt: what goes out over it goes through the transport
        if transport.get_extra_info("sslcontext") is None:
            self._descriptor = transport.get_extra_info("socket").fileno()

    # What the connection does

    def is_blocked(self) -> bool:
        """Return whether no request is to be served until more is sent."""
        return self.is_streaming or self.is_paused

    def is_full(self) -> bool:
        """Return whether so much has gathered that it is to be sent before more requests are served."""
        return self.gathered_bytes > MAX_GATHERED_BYTES

    def send(self) -> None:
        """Send the replies, or as much of them as there is to be had; there is at least one, and no write to
        the disk is pending."""
        if self._streams:
            self._send_streams()
            return
        replies = self.replies
        # no `cast`: it would be a call
        data: bytes = replies[0] if len(replies) == 1 else b"".join(replies)  # type: ignore[arg-type, assignment]
        replies.clear()
        self.gathered_bytes = 0
        self.is_streaming = False
        if data:
            self._counters.bytes_written += len(data)
            self._write(data)

    def pause(self) -> None:
        """Stop: the transport's buffer is above its high-water mark."""
        self.is_paused = True

    def resume(self) -> None:
        """Send on: the transport's buffer is below its low-water mark."""
        self.is_paused = False

    def check_transport(self) -> None:
        """Note whether the transport is closing. What is written to the socket directly finds that out by
        itself."""
        if (self._descriptor < 0 or self._is_buffered) and self._transport.is_closing():
            self.is_disconnected = True

    def close(self, loop: asyncio.AbstractEventLoop, *, linger: bool) -> None:
        """Close the connection, for all is sent. With `linger` the client has LINGER_S to read it."""
        transport = self._transport
        if not linger:
            transport.close()
        elif self._linger_timer is None and not transport.is_closing():
            if transport.can_write_eof():
                transport.write_eof()
            self._linger_timer = loop.call_later(LINGER_S, transport.close)

    def abandon(self) -> None:
        """Give up what is not sent: the connection is closed. The slots stay, for the log may yet report a
        write that failed."""
        self._descriptor = -1
        self.is_disconnected = True
        # it is the connection's: without it neither refers to the other, and both are freed at once
        self._on_ready = _ignore
        for slot, reply in enumerate(self.replies):
            if isinstance(reply, Stream):
                self.replies[slot] = b""
                reply.abandon()

    def _write(self, data: bytes) -> None:
        """Write to the socket directly, and what it does not take to the transport. The transport alone would
        write only when everything that has arrived from all clients is served, while they wait."""
        if self._is_buffered:
            self._is_buffered = self._transport.get_write_buffer_size() > 0
        if self._descriptor >= 0 and not self._is_buffered:
            try:
                sent = send(self._descriptor, data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._disconnect()
                return
            if sent == len(data):
                return
            data = data[sent:]
        self._is_buffered = True
        self._transport.write(data)

    def _disconnect(self) -> None:
        """Close the connection, whose client has disconnected, so that no more items are taken from a queue
        for it. The system reports a reset once, as the error of this write; later it looks like the end of
        what the client sends."""
        self.is_disconnected = True
        self._descriptor = -1
        self._transport.abort()

    # Streams

    def append_stream(self, stream: Stream) -> None:
        """Add a large item to the replies; requests behind it are served once it is sent."""
        self.replies.append(stream)
        self._streams += 1
        self.is_streaming = True

    def _send_streams(self) -> None:
        """Send replies until the client has enough for now."""
        replies = self.replies
        sent = 0
        must_wait = False
        try:
            while replies and sent < MAX_GATHERED_BYTES and not (self.is_paused or self.is_disconnected):
                reply = replies[0]
                if isinstance(reply, bytes):
                    data: bytes | None = reply
                    del replies[0]
                else:
                    data = self._begin_stream(reply) if reply.header else self._continue_stream(reply)
                    if data is None:
                        must_wait = True
                        break
                if data:
                    sent += len(data)
                    self._write(data)
        except JournalError as error:
            # the client has half an item, which it must not take for a whole one
            log.error(
                "item cut off, connection closed", peer=peer.address_of(self._transport), reason=str(error)
            )
            self._transport.abort()
            return
        self._counters.bytes_written += sent
        if not self._streams and not replies:
            self.gathered_bytes = 0
            self.is_streaming = False
        if not (must_wait or self.is_paused or self.is_disconnected):
            # to send on, or to serve what is behind
            self._on_ready()

    def _begin_stream(self, stream: Stream) -> bytes | None:
        """Return the header of a stream, None if that has to wait; b"" if another reply took its place."""
        try:
            if not stream.begin(self._on_ready):
                return None
        except JournalError as error:
            self._streams -= 1
            stream.fail(error)
            return b""
        header, stream.header = stream.header, b""
        return header

    def _continue_stream(self, stream: Stream) -> bytes | None:
        """Return the next slice of a stream, None if that has to wait."""
        data = stream.read(self._on_ready)
        if data == b"":
            stream.close()
            self._streams -= 1
            del self.replies[0]
            return b"\r\n"
        return data

    # Writes to the disk

    def hold(self) -> None:
        """Send nothing until the matching `release`."""
        self.pending_writes += 1

    def release(self) -> None:
        """Send on: a write that replies wait for is done, or has failed."""
        self.pending_writes -= 1
        if not self.pending_writes:
            self._on_ready()

    def wait_for(self, pending: Pending) -> None:
        """Send nothing until something is done, such as the writing of what is staged in a journal."""
        pending.held_back.append(self)
        self.pending_writes += 1

    def fail(self, slot: int, error: DarnerError) -> None:
        """Replace the reply to a set in `slot`: what it promised did not happen."""
        if self.replies[slot] == b"":
            self._counters.noreply_errors += 1
        else:
            self.replies[slot] = not_stored(error)
