"""Sessions of queue servers' protocols on plain sockets, and a driver that loads a server through them.

A session is a connection that puts items into one queue, or gets them from it. It knows the bytes of its
request and checks those of the reply, and has no other code: the client's part of a figure is small, and of
the same kind for each server. Each session has one request under way and waits for its reply. Linux only, for
epoll.

An item is lower case letters, so nothing else in a reply is taken for it. Each reply must be that to a
success, and bring the item that was put.
"""

import array
import json
import re
import select
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from load import raw
from load.servers import Server, ServerError

READ_BYTES = 1 << 16
# What waits for a server longer than this has failed.
REPLY_S = 60.0
# How a queue is filled: one connection's replies are read while the others' batches are stored.
FILL_CONNECTIONS, FILL_PIPELINE = 4, 100


class Session:
    """One connection to a server that has `queue`. Subclasses say what an operation sends and is answered."""

    def __init__(self, connection: socket.socket, queue: str, item: bytes) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket, self.queue, self.item = connection, queue.encode(), item
        self.held = self.line = b""
        self._open()

    def _open(self) -> None:
        """Say hello, and set the first line; the socket still blocks."""

    def request(self) -> bytes:
        """Return what the next operation sends."""
        return self.line

    def feed(self, data: bytes) -> int:
        """Return how many operations these bytes complete; ServerError if they are no success."""
        raise NotImplementedError

    def ask(self, request: bytes, end: bytes) -> bytes:
        """Send a request, and return the reply once it has this in its end."""
        self.socket.sendall(request)
        reply = b""
        while not reply.endswith(end):
            if not (data := self.socket.recv(READ_BYTES)):
                raise ServerError(f"closed the connection at {request[:60]!r}: {reply[-200:]!r}")
            reply += data
        return reply

    def refuse(self, reply: bytes) -> ServerError:
        """Return the error of a reply that is none to a success."""
        return ServerError(f"{type(self).__name__}: {reply[:200]!r}")


class Put(Session):
    """Puts whose reply is a line, all of them alike but for a number."""

    LINE: ClassVar[re.Pattern[bytes]]

    def feed(self, data: bytes) -> int:
        """Return how many lines these bytes complete."""
        data = self.held + data
        cut = data.rfind(b"\n") + 1
        self.held = data[cut:]
        done = data.count(b"\n")
        if len(self.LINE.findall(data)) != done:
            raise self.refuse(data)
        return done


class Get(Session):
    """Gets whose reply ends with the item; `START` begins that to the first, and that to each later one."""

    START: ClassVar[tuple[bytes, bytes]]

    def _open(self) -> None:
        self.start, self.later = self.START
        self.end = b"\r\n%s\r\n" % self.item

    def feed(self, data: bytes) -> int:
        """Return 1 if these bytes complete the reply."""
        if self.held:
            data = self.held + data
        if data[: len(self.start)] != self.start[: len(data)]:
            raise self.refuse(data)
        if not data.endswith(self.end):
            self.held = data
            return 0
        self.held = b""
        self.start = self.later
        self._got(data)
        return 1

    def _got(self, reply: bytes) -> None:
        """Keep what the next request says of this reply."""


class MemcachePut(Put):
    """`set`."""

    LINE = re.compile(rb"^STORED\r\n", re.MULTILINE)
    OPTION = b""

    def _open(self) -> None:
        self.line = b"set %s%s 0 0 %d\r\n%s\r\n" % (self.queue, self.OPTION, len(self.item), self.item)


class MemcachePutSync(MemcachePut):
    """`set` with `/sync`."""

    OPTION = b"/sync"


class MemcacheGet(Get):
    """`get`."""

    START = (b"VALUE ", b"VALUE ")
    OPTIONS = b""

    def _open(self) -> None:
        super()._open()
        self.end += b"END\r\n"
        self.line = b"get %s%s\r\n" % (self.queue, self.OPTIONS)


class MemcacheReliable(MemcacheGet):
    """`get` with `/close/open`."""

    OPTIONS = b"/close/open"


class BeanstalkPut(Put):
    """`put`."""

    LINE = re.compile(rb"^INSERTED \d+\r\n", re.MULTILINE)

    def _open(self) -> None:
        self.ask(b"use %s\r\n" % self.queue, b"USING %s\r\n" % self.queue)
        self.line = b"put 0 0 600 %d\r\n%s\r\n" % (len(self.item), self.item)


class BeanstalkReliable(Get):
    """`delete` of the last item and `reserve` of the next."""

    START = (b"RESERVED ", b"DELETED\r\nRESERVED ")

    def _open(self) -> None:
        super()._open()
        self.ask(b"watch %s\r\n" % self.queue, b"WATCHING 2\r\n")
        self.ask(b"ignore default\r\n", b"WATCHING 1\r\n")
        self.line = b"reserve\r\n"

    def _got(self, reply: bytes) -> None:
        self.line = b"delete %s\r\nreserve\r\n" % reply.split(b" ", 2)[1]


def redis_command(*words: bytes) -> bytes:
    """Return a command in Redis' protocol."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


class RedisPut(Put):
    """`RPUSH`."""

    LINE = re.compile(rb"^:\d+\r\n", re.MULTILINE)

    def _open(self) -> None:
        self.line = redis_command(b"RPUSH", self.queue, self.item)


class RedisGet(Get):
    """`LPOP`."""

    START = (b"$", b"$")

    def _open(self) -> None:
        super()._open()
        self.start = self.later = b"$%d\r\n" % len(self.item)
        self.line = redis_command(b"LPOP", self.queue)


class RedisReliable(Get):
    """`LREM` of the last item from a list of the connection's own, and `LMOVE` of the next into that."""

    START = (b"$", b":1\r\n$")

    def _open(self) -> None:
        super()._open()
        self.start += b"%d\r\n" % len(self.item)
        self.later += b"%d\r\n" % len(self.item)
        own = b"%s-%d" % (self.queue, self.socket.getsockname()[1])
        self.move = self.line = redis_command(b"LMOVE", self.queue, own, b"LEFT", b"RIGHT")
        self.remove_and_move = redis_command(b"LREM", own, b"1", self.item) + self.move

    def _got(self, reply: bytes) -> None:  # noqa: ARG002 - the item is known
        self.line = self.remove_and_move


class Nats:
    """What sessions with NATS have in common. The stream of queue Q is Q, its consumer Q, its subject Q."""

    @staticmethod
    def hello(session: Session) -> bytes:
        """Open the connection, and return the subject that replies go to."""
        options = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True}
        inbox = b"_INBOX.%d" % session.socket.getsockname()[1]
        session.ask(b"", b"\r\n")
        session.ask(b"CONNECT %s\r\nPING\r\n" % json.dumps(options).encode(), b"PONG\r\n")
        session.socket.sendall(b"SUB %s 1\r\n" % inbox)
        return inbox

    @staticmethod
    def without_ping(session: Session, data: bytes) -> bytes:
        """Answer the server's PING, and return the rest."""
        if b"PING\r\n" in data:
            session.socket.send(b"PONG\r\n")
            return data.replace(b"PING\r\n", b"")
        return data


class NatsPut(Session):
    """A publication that JetStream acknowledges."""

    def _open(self) -> None:
        inbox = Nats.hello(self)
        self.line = b"PUB %s %s %d\r\n%s\r\n" % (self.queue, inbox, len(self.item), self.item)

    def feed(self, data: bytes) -> int:
        """Return how many acknowledgements these bytes complete."""
        data = self.held + Nats.without_ping(self, data)
        cut = data.rfind(b"}\r\n") + 3 if b"}\r\n" in data else 0
        self.held = data[cut:]
        done = data.count(b"}\r\n")
        if data.count(b'"seq":', 0, cut) != done or data[:4] != b"MSG "[: len(data)]:
            raise self.refuse(data)
        return done


class NatsGet(Get):
    """A pull of one message from a consumer that wants no acknowledgement."""

    START = (b"MSG ", b"MSG ")

    def _open(self) -> None:
        super()._open()
        inbox = Nats.hello(self)
        self.line = self.next = b"PUB $JS.API.CONSUMER.MSG.NEXT.%s.%s %s 0\r\n\r\n" % (
            self.queue,
            self.queue,
            inbox,
        )

    def feed(self, data: bytes) -> int:
        """Return 1 if these bytes complete the message."""
        return super().feed(rest) if (rest := Nats.without_ping(self, data)) else 0


class NatsReliable(NatsGet):
    """`+ACK` of the last message and a pull of the next."""

    def _got(self, reply: bytes) -> None:
        self.line = b"PUB %s 4\r\n+ACK\r\n%s" % (reply.split(b" ", 4)[3], self.next)


# AMQP 0-9-1: what a frame is, and classes and methods.
METHOD, HEADER, BODY = 1, 2, 3
FRAME_END = b"\xce"
START_OK, TUNE, TUNE_OK, OPEN, OPEN_OK = (10, 11), (10, 30), (10, 31), (10, 40), (10, 41)
CHANNEL_OPEN, CHANNEL_OPEN_OK = (20, 10), (20, 11)
DECLARE, DECLARE_OK, DELETE, DELETE_OK = (50, 10), (50, 11), (50, 40), (50, 41)
PUBLISH, GET, GET_OK, ACK = (60, 40), (60, 70), (60, 71), (60, 80)
SELECT, SELECT_OK = (85, 10), (85, 11)
DURABLE, PERSISTENT = 2, 2
HAS_DELIVERY_MODE = 0x1000


def amqp_frame(kind: int, channel: int, payload: bytes) -> bytes:
    """Return a frame."""
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + FRAME_END


def amqp_method(channel: int, method: tuple[int, int], arguments: bytes = b"") -> bytes:
    """Return the frame of a method."""
    return amqp_frame(METHOD, channel, struct.pack(">HH", *method) + arguments)


def short_text(text: bytes) -> bytes:
    """Return a text of at most 255 bytes as AMQP has it."""
    return bytes([len(text)]) + text


def long_text(text: bytes) -> bytes:
    """Return a text as AMQP has it."""
    return struct.pack(">I", len(text)) + text


class Amqp(Session):
    """A connection with one channel, 1."""

    greeting = b""

    def _open(self) -> None:
        credentials = b"PLAIN", b"\0guest\0guest"
        self.greeting = self.ask(b"AMQP\x00\x00\x09\x01", FRAME_END)
        self.call(
            0,
            START_OK,
            long_text(b"") + short_text(credentials[0]) + long_text(credentials[1]) + short_text(b"en_US"),
            TUNE,
        )
        # as many channels and bytes of a frame as the server offers, and no heartbeat
        self.socket.sendall(amqp_method(0, TUNE_OK, struct.pack(">HIH", 2047, 131072, 0)))
        self.call(0, OPEN, short_text(b"/") + short_text(b"") + b"\0", OPEN_OK)
        self.call(1, CHANNEL_OPEN, short_text(b""), CHANNEL_OPEN_OK)

    def call(self, channel: int, method: tuple[int, int], arguments: bytes, answer: tuple[int, int]) -> None:
        """Call a method of the server's, and wait for this answer; ServerError if it is another."""
        reply = self.ask(amqp_method(channel, method, arguments), FRAME_END)
        if struct.unpack_from(">HH", reply, 7) != answer:
            raise self.refuse(reply)

    def declare(self) -> None:
        """Make the queue, durable."""
        arguments = b"\0\0" + short_text(self.queue) + bytes([DURABLE]) + long_text(b"")
        self.call(1, DECLARE, arguments, DECLARE_OK)

    def delete(self) -> None:
        """Delete the queue."""
        self.call(1, DELETE, b"\0\0" + short_text(self.queue) + b"\0", DELETE_OK)


class AmqpPut(Amqp):
    """`basic.publish` of a persistent message, with confirms."""

    CONFIRM = struct.Struct(">BHIHHQBB")

    def _open(self) -> None:
        super()._open()
        self.call(1, SELECT, b"\0", SELECT_OK)
        header = struct.pack(">HHQHB", PUBLISH[0], 0, len(self.item), HAS_DELIVERY_MODE, PERSISTENT)
        self.line = (
            amqp_method(1, PUBLISH, b"\0\0" + short_text(b"") + short_text(self.queue) + b"\0")
            + amqp_frame(HEADER, 1, header)
            + amqp_frame(BODY, 1, self.item)
        )
        self.sent = 0
        self.waiting: set[int] = set()

    def request(self) -> bytes:
        """Return a message's frames, and expect its confirm."""
        self.sent += 1
        self.waiting.add(self.sent)
        return self.line

    def feed(self, data: bytes) -> int:
        """Return how many messages these bytes confirm."""
        data = self.held + data
        cut = len(data) - len(data) % self.CONFIRM.size
        self.held = data[cut:]
        before = len(self.waiting)
        for *frame, tag, multiple, _ in self.CONFIRM.iter_unpack(data[:cut]):
            if frame != [METHOD, 1, 13, *ACK]:
                raise self.refuse(data)
            if multiple:
                self.waiting = {number for number in self.waiting if number > tag}
            else:
                self.waiting.remove(tag)
        return before - len(self.waiting)


class AmqpGet(Amqp):
    """`basic.get` without an acknowledgement."""

    NO_ACK = True

    def _open(self) -> None:
        super()._open()
        self.next = self.line = amqp_method(1, GET, b"\0\0" + short_text(self.queue) + bytes([self.NO_ACK]))
        self.end = amqp_frame(BODY, 1, self.item)

    def feed(self, data: bytes) -> int:
        """Return 1 if these bytes complete the message."""
        if self.held:
            data = self.held + data
        if len(data) > 11 and struct.unpack_from(">HH", data, 7) != GET_OK:
            raise self.refuse(data)
        if not data.endswith(self.end):
            self.held = data
            return 0
        self.held = b""
        self._got(data)
        return 1

    def _got(self, reply: bytes) -> None:
        """Keep what the next request says of this reply."""


class AmqpReliable(AmqpGet):
    """`basic.ack` of the last message and `basic.get` of the next."""

    NO_ACK = False

    def _got(self, reply: bytes) -> None:
        self.line = amqp_method(1, ACK, reply[11:19] + b"\0") + self.next


@dataclass(frozen=True)
class Sessions:
    """The sessions of one kind of server, by what they do. A kind that cannot do it has None."""

    put: type[Session]
    get: type[Session] | None
    reliable: type[Session]


def drive(server: Server, sessions: Sequence[Session], requests: int, seconds: float) -> raw.Result:
    """Have so many operations done in all, one at a time by each session, for so many seconds at most."""
    latencies_ns = array.array("Q")
    noted, clock = latencies_ns.append, time.perf_counter_ns
    by_fd = {one.socket.fileno(): one for one in sessions[:requests]}
    sent_ns: dict[int, int] = {}
    epoll = select.epoll()
    for fd, session in by_fd.items():
        session.socket.setblocking(False)
        epoll.register(fd, select.EPOLLIN)
    usage, cpu, started = raw.own_cpu_s(), server.cpu_s(), clock()
    end = started + int(seconds * 1e9)
    for fd, session in by_fd.items():
        sent_ns[fd] = clock()
        _send(session)
    left, live = requests - len(by_fd), len(by_fd)
    with epoll:
        while live:
            events = epoll.poll(REPLY_S, raw.EVENTS)
            if not events:
                raise TimeoutError(f"no reply for {REPLY_S:.0f} s, {live} connections wait")
            if clock() > end:
                left = 0
            for fd, _ in events:
                session = by_fd[fd]
                if not (data := session.socket.recv(READ_BYTES)):
                    raise ConnectionError("closed a connection")
                if session.feed(data):
                    now = clock()
                    noted(now - sent_ns[fd])
                    if left > 0:
                        left -= 1
                        sent_ns[fd] = now
                        _send(session)
                    else:
                        live -= 1
                        epoll.unregister(fd)
    passed_s = (clock() - started) / 1e9
    return raw.result_of(latencies_ns, passed_s, raw.own_cpu_s() - usage, server.cpu_s() - cpu, server)


def _send(session: Session) -> None:
    request = session.request()
    if session.socket.send(request) != len(request):
        raise ServerError(f"a request of {len(request)} bytes was not sent at once")


def fill(sessions: Sequence[Session], items: int, seconds: float) -> int:
    """Put so many items, many at a time, for so many seconds at most, and return how many."""
    done, end = 0, time.monotonic() + seconds
    while done < items and time.monotonic() < end:
        under_way = []
        for session in sessions:
            count = min(items - done, FILL_PIPELINE)
            done += count
            session.socket.sendall(b"".join(session.request() for _ in range(count)))
            under_way.append((session, count))
        for session, count in under_way:
            left = count
            while left:
                if not (data := session.socket.recv(READ_BYTES)):
                    raise ConnectionError("closed a connection")
                left -= session.feed(data)
    return done
