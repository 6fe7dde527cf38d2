"""The wire protocol as a client sees it, without I/O: requests are made as bytes, and replies are read out of
bytes.

docs/protocol.md is the contract. Everything that decides about a byte stands here, once for the sync and the
async client. Times are in milliseconds here, as on the wire.
"""

import re
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from darner.client.errors import (
    BadRequestError,
    ClientError,
    ItemTooLargeError,
    LoginError,
    NotPermittedError,
    ProtocolError,
    QueueFullError,
    RefusedError,
    ReservationLostError,
    ServerFailedError,
)

# The server's longest wait, 24 days.
MAX_WAIT_MS = 0x7FFFFFFF
MAX_EXPIRE_S = (1 << 40) - 1
# The longest line of a reply: two names of 250 bytes, percent-encoded, in a line of `stats`.
MAX_REPLY_LINE_BYTES = 4096
# A value of more bytes is not copied to be sent, and is received into a buffer of its own.
LARGE_BYTES = 1 << 16
# The first room for a large value; it is doubled as the value comes, for a size is only what a peer claims.
_FIRST_ROOM = 1 << 20
# What `exptime` takes for seconds from now; above that it is seconds of the Unix epoch.
_MAX_RELATIVE_EXPTIME = 2_592_000
_ID_BITS = 48

_NAME = re.compile(rb"[^\x00-\x20/\x7f]{1,250}")
_WORD = re.compile(rb"[^\x00-\x20\x7f]+")
_CURSOR = b"/cursor="
_VALUE = re.compile(rb"VALUE ([^ \r\n]+) (\d{1,10}) (\d{1,18})(?: (\d{1,20}))?")
_VALUE_LINE = re.compile(_VALUE.pattern + rb"\r\n")
_META_VALUE = re.compile(rb"VA (\d{1,18})(?: [a-zA-Z][^ \r\n]*)*")
_FIGURE = re.compile(rb" ([a-z])(-?\d{1,20})(?![^ ])")

CRLF = b"\r\n"
# A setting of a queue, as the configuration file has it; None is none.
Setting = str | int | None

OK = b"OK"
END = b"END"
STORED = b"STORED"
NOT_STORED = b"NOT_STORED"
DELETED = b"DELETED"
_NO_LOGIN = b"CLIENT_ERROR authentication failure"
STATUSES = ("up", "readonly", "quiescent")
STATUS_REPLIES = (b"UP", b"READONLY", b"QUIESCENT")


# Requests


@lru_cache(maxsize=4096)
def queue_key(queue: str | bytes) -> bytes:
    """Return the bytes of a queue's name; BadRequestError if it cannot be one."""
    return _name(queue, "the name of a queue")


@lru_cache(maxsize=4096)
def source_key(queue: str | bytes) -> bytes:
    """Return the bytes of what is read from: a queue or `<queue>/cursor=<name>`; BadRequestError as there."""
    key = queue.encode(errors="surrogateescape") if isinstance(queue, str) else queue
    if not isinstance(key, bytes) or _CURSOR not in key:
        return queue_key(queue)
    name, _, cursor = key.partition(_CURSOR)
    return queue_key(name) + _CURSOR + _name(cursor, "the name of a cursor")


def source_keys(queues: str | bytes | Sequence[str | bytes]) -> Sequence[bytes]:
    """Return the bytes of each queue to read from, the most urgent first; BadRequestError if one is bad."""
    if isinstance(queues, str | bytes):
        return [source_key(queues)]
    keys = [source_key(queue) for queue in queues]
    if not keys or len(set(keys)) < len(keys):
        raise BadRequestError("name one queue or several, each once")
    return keys


def milliseconds(seconds: float) -> int:
    """Return a time in milliseconds, at least 1 if it is not 0; BadRequestError if it is no time."""
    if not seconds >= 0:
        raise BadRequestError(f"{seconds!r} is not a time: a number of seconds, 0 or more")
    if seconds * 1000 >= MAX_WAIT_MS:
        return MAX_WAIT_MS
    return round(seconds * 1000) or int(seconds > 0)


def put_line(
    queue: bytes,
    size: int,
    flags: int = 0,
    *,
    delay: float = 0,
    expire: float = 0,
    id: str | bytes | None = None,
    sync: bool = False,
) -> bytes:
    """Return the line of a `set`; the data and CRLF come behind it. `delay` and `expire` are in seconds."""
    if not (delay or expire or sync or id is not None):
        return b"set %b %d 0 %d\r\n" % (queue, flags, size)
    options = b"/sync" if sync else b""
    if delay:
        options += b"/delay=%d" % milliseconds(delay)
    if id is not None:
        options += b"/id=" + item_id(id)
    return b"set %b%b %d %d %d\r\n" % (queue, options, flags, _exptime(expire), size)


@lru_cache(maxsize=4096)
def plain_put(queue: str | bytes) -> bytes:
    """Return what a `set` without flags and options begins with, up to the size; BadRequestError as above."""
    return b"set %b 0 0 " % queue_key(queue)


@lru_cache(maxsize=4096)
def plain_get(queue: str) -> bytes:
    """Return the request that takes the next item of one queue if there is one; BadRequestError as above."""
    return get_line([source_key(queue)])


def item_id(id: str | bytes) -> bytes:
    """Return the bytes of the id of a put; BadRequestError if it cannot be one."""
    return _name(id, "an id")


def _name(name: str | bytes, what: str) -> bytes:
    key = name.encode(errors="surrogateescape") if isinstance(name, str) else name
    if not isinstance(key, bytes) or _NAME.fullmatch(key) is None:
        raise BadRequestError(f"{name!r} is not {what}: 1 to 250 bytes without space, control character or /")
    return key


def _exptime(expire: float) -> int:
    """Return memcached's exptime of so many seconds from now; a part of a second counts as one."""
    if not 0 <= expire <= MAX_EXPIRE_S:
        raise BadRequestError(f"{expire!r} is not a time: a number of seconds, 0 or more")
    seconds = int(-(-expire // 1))
    return seconds if seconds <= _MAX_RELATIVE_EXPTIME else seconds + int(time.time())


def get_line(keys: Sequence[bytes], options: bytes = b"", wait_ms: int = 0) -> bytes:
    """Return a `gets` of one item from the first of these queues that has one.

    `options` are `/open` or `/peek`. Several queues always get a `/t`, for this makes it one item in all.
    """
    if wait_ms or len(keys) > 1:
        options += b"/t=%d" % wait_ms
    if len(keys) == 1:
        return b"gets %b%b\r\n" % (keys[0], options)
    return b"gets %b\r\n" % b" ".join([key + options for key in keys])


def browse_line(key: bytes, start: int) -> bytes:
    """Return a `gets` that looks at the first item whose id is at least `start`."""
    return b"gets %b/peek/from=%d\r\n" % (key, start)


def look_line(key: bytes, start: int, flags: bytes) -> bytes:
    """Return an `mg` that looks at the first item whose id is at least `start`; `flags` say what to tell."""
    return b"mg %b/peek/from=%d %b\r\n" % (key, start, flags)


def reserve_line(key: bytes, flags: bytes) -> bytes:
    """Return an `mg` that reserves the next item of a queue; `flags` say what to tell of it."""
    return b"mg %b/open %b\r\n" % (key, flags)


def close_line(key: bytes, token: int) -> bytes:
    """Return the request that removes a reserved item."""
    return b"get %b/close=%d\r\n" % (key, token)


def abort_line(key: bytes, token: int, delay: float | None = None) -> bytes:
    """Return the request that puts a reserved item back at the head, or at the end in `delay` seconds."""
    if delay is not None:
        return b"get %b/abort=%d/delay=%d\r\n" % (key, token, milliseconds(delay))
    return b"get %b/abort=%d\r\n" % (key, token)


def login_request(user: str, password: str) -> bytes:
    """Return the request that must come before any other where users are asked for."""
    login = f"{user} {password}".encode()
    return b"set login 0 0 %d\r\n%b\r\n" % (len(login), login)


def flush_line(queue: bytes) -> bytes:
    """Return the request that discards what waits in a queue."""
    return b"flush %b\r\n" % queue


def delete_line(queue: bytes) -> bytes:
    """Return the request that drops a queue."""
    return b"delete %b\r\n" % queue


def configure_line(queue: bytes, settings: Mapping[str, Setting]) -> bytes:
    """Return the request that changes what is set for a queue; BadRequestError if it cannot be put in words.

    None forgets a setting.
    """
    words = [b"%b=%b" % (key.encode(), _setting(value)) for key, value in settings.items()]
    if not all(map(_WORD.fullmatch, words)):
        raise BadRequestError(f"{settings!r} are no settings: these are words without space")
    return b" ".join((b"configure", queue, *words)) + CRLF


def _setting(value: Setting) -> bytes:
    if value is None:
        return b""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text.encode(errors="surrogateescape")


def status_line(status: str | None) -> bytes:
    """Return the request that sets the server's status, or asks for it."""
    if status is None:
        return b"status\r\n"
    if status not in STATUSES:
        raise BadRequestError(f"{status!r} is not a status: up, readonly or quiescent")
    return b"status %b\r\n" % status.encode()


def config_line(queue: bytes) -> bytes:
    """Return the request for the settings in force of a queue."""
    return b"dump_config %b\r\n" % queue


VERSION = b"version\r\n"
STATS = b"stats\r\n"
QUEUE_STATS = b"stats queues\r\n"
SETTINGS_STATS = b"stats settings\r\n"


# Replies


class Value(NamedTuple):
    """An item in a reply. `token` is its cas token: the attempts and the id; 0 if the reply has none."""

    key: bytes
    flags: int
    data: bytes
    token: int


class Reply(NamedTuple):
    """A whole reply: its last line without the line end, and what came before an END.

    Of an `mg` that asks for data, the line is the one before them.
    """

    line: bytes
    values: Sequence[Value] = ()
    stats: Sequence[tuple[str, str]] = ()


# What most requests are answered with that is no item.
_SHORT = {b"STORED\r\n": Reply(STORED), b"END\r\n": Reply(END)}
_END_OF_VALUE = b"\r\nEND\r\n"


class Replies:
    """Reads replies out of the bytes of one connection, however these are split.

    Bytes come in by `feed`, or into `room` for a large value. Replies come out by `next`. After a
    ProtocolError the connection is of no more use.
    """

    __slots__ = (
        "_at", "_data", "_filled", "_large", "_meta", "_room", "_stats", "_values", "_wanted", "is_over",
    )  # fmt: skip

    def __init__(self) -> None:
        self._data = b""
        # where the part begins that was not read yet
        self._at = 0
        # of the reply under way
        self._values: list[Value] = []
        self._stats: list[tuple[str, str]] = []
        # the line of an `mg` whose data follow
        self._meta = b""
        # the value under way, if it did not come as a whole: its head, the buffer that it comes into, how
        # much of that is filled, and how many bytes it takes with its line end
        self._large: Value | None = None
        self._room = bytearray()
        self._filled = 0
        self._wanted = 0
        # whether the server ends the connection behind the last reply
        self.is_over = False

    @property
    def is_between(self) -> bool:
        """Whether every byte that came belongs to a reply that was read."""
        return self._at == len(self._data) and not (self._large or self._values or self._stats)

    def feed(self, data: bytes) -> None:
        """Take bytes that came."""
        if self._large is not None:
            data = self._fill(data)
        self._data = data if self._at == len(self._data) else self._data[self._at :] + data
        self._at = 0

    def take(self, data: bytes) -> Reply | None:
        """Do as `feed`, then `next`: quickly if what came is a short reply as a whole, as most are."""
        reply = _SHORT.get(data)
        if reply is not None and self.is_between:
            return reply
        self.feed(data)
        return self.next()

    def several(self, most: int) -> list[Reply]:
        """Do as `next` until it gives None, `most` times at most: quickly if all are the same short reply."""
        if not (self._large or self._values or self._stats):
            for short, reply in _SHORT.items():
                count = min((len(self._data) - self._at) // len(short), most)
                if count and self._data.startswith(short * count, self._at):
                    self._at += len(short) * count
                    return [reply] * count
        replies: list[Reply] = []
        while len(replies) < most and (next_one := self.next()) is not None:
            replies.append(next_one)
        return replies

    def room(self) -> memoryview | None:
        """Return where to receive the next bytes, if a large value is under way; tell `received` how many
        came.

        The view is to be released before the next call of any other method.
        """
        if self._large is None or self._filled == self._wanted:
            return None
        self._grow()
        return memoryview(self._room)[self._filled :]

    def received(self, count: int) -> None:
        """Take note that so many bytes came into `room`."""
        self._filled += count

    def next(self) -> Reply | None:
        """Return the next reply, or None until more bytes have come; ProtocolError if it is none."""
        if self._large is None and (reply := self._one_item()) is not None:
            return reply
        while True:
            if self._large is not None:
                if self._filled < self._wanted:
                    return None
                self._end_large()
            if self._meta:
                return self._meta_reply()
            line = self._line()
            if line is None:
                return None
            if line.startswith(b"VALUE "):
                self._begin_value(line)
            elif line.startswith(b"STAT "):
                self._add_stat(line)
            elif line.startswith(b"VA "):
                self._begin_meta(line)
            else:
                return self._reply(line)

    def _line(self) -> bytes | None:
        """Return the next line without its end; None until all of it has come."""
        end = self._data.find(b"\n", self._at)
        if end < 0:
            if len(self._data) - self._at > MAX_REPLY_LINE_BYTES:
                raise ProtocolError(f"a line goes on for ever: {self._data[self._at :][:60]!r}")
            return None
        line = self._data[self._at : end - 1]
        if self._data[end - 1 : end] != b"\r" or end == self._at:
            raise ProtocolError(f"a reply ends without CRLF: {line[:60]!r}")
        self._at = end + 1
        return line

    def _one_item(self) -> Reply | None:
        """Return the next reply if that is an item and its END, and all of it has come."""
        found = _VALUE_LINE.match(self._data, self._at)
        if found is None or self._values or self._stats:
            return None
        key, flags, size, token = found.groups(b"0")
        begin = found.end()
        end = begin + int(size)
        if not self._data.startswith(_END_OF_VALUE, end):
            return None
        self._at = end + len(_END_OF_VALUE)
        return Reply(END, (Value(key, int(flags), self._data[begin:end], int(token)),))

    def _reply(self, line: bytes) -> Reply:
        if not (self._values or self._stats):
            self.is_over = line == _NO_LOGIN
            return Reply(line)
        if line != END and not line.startswith((b"SERVER_ERROR", b"CLIENT_ERROR")):
            raise ProtocolError(f"behind an item came {line[:60]!r}")
        reply = Reply(line, self._values, self._stats)
        self._values, self._stats = [], []
        return reply

    def _begin_value(self, line: bytes) -> None:
        found = _VALUE.fullmatch(line)
        if found is None or self._stats:
            raise ProtocolError(f"this is the head of no item: {line[:60]!r}")
        key, flags, size, token = found.groups()
        self._begin_data(Value(key, int(flags), b"", int(token or 0)), int(size))

    def _begin_meta(self, line: bytes) -> None:
        found = _META_VALUE.fullmatch(line)
        if found is None or self._values or self._stats:
            raise ProtocolError(f"this is the head of no item: {line[:60]!r}")
        told = figures(line)
        self._meta = line
        self._begin_data(Value(b"", told.get("f", 0), b"", told.get("c", 0)), int(found[1]))

    def _meta_reply(self) -> Reply:
        reply = Reply(self._meta, self._values)
        self._meta, self._values = b"", []
        return reply

    def _begin_data(self, value: Value, size: int) -> None:
        begin, end = self._at, self._at + size
        if end + 2 <= len(self._data):
            if self._data[end : end + 2] != CRLF:
                raise ProtocolError("an item does not end where its head says")
            self._values.append(value._replace(data=self._data[begin:end]))
            self._at = end + 2
            return
        self._large = value
        self._wanted = size + 2
        self._filled = 0
        self._room = bytearray()
        begun, self._data, self._at = self._data[begin:], b"", 0
        self._fill(begun)

    def _fill(self, data: bytes) -> bytes:
        """Put bytes into the large value; return those behind it."""
        at = 0
        while at < len(data) and self._filled < self._wanted:
            self._grow()
            count = min(len(data) - at, len(self._room) - self._filled)
            self._room[self._filled : self._filled + count] = data[at : at + count]
            self._filled += count
            at += count
        return data[at:]

    def _grow(self) -> None:
        """See to it that there is room."""
        if self._filled == len(self._room):
            more = min(max(len(self._room), _FIRST_ROOM), self._wanted - len(self._room))
            self._room += bytes(more)

    def _end_large(self) -> None:
        assert self._large is not None
        with memoryview(self._room) as room:
            if room[-2:] != CRLF:
                raise ProtocolError("an item does not end where its head says")
            self._values.append(self._large._replace(data=bytes(room[:-2])))
        self._large = None
        self._room = bytearray()

    def _add_stat(self, line: bytes) -> None:
        words = line.split(b" ", 2)
        if len(words) != 3 or self._values:
            raise ProtocolError(f"this is no figure: {line[:60]!r}")
        self._stats.append((words[1].decode(errors="replace"), words[2].decode(errors="replace")))


def error_of(line: bytes) -> ClientError | None:
    """Return the error that the last line of a reply stands for; None if it is none."""
    if line == NOT_STORED:
        return QueueFullError("the queue is full")
    if line == b"ERROR":
        return BadRequestError("the server does not know this command")
    word, _, rest = line.partition(b" ")
    text = rest.decode(errors="replace")
    if word == b"SERVER_ERROR":
        if rest == b"object too large for cache":
            return ItemTooLargeError(text)
        return RefusedError(text) if rest.startswith(b"refused: ") else ServerFailedError(text)
    if word != b"CLIENT_ERROR":
        return None
    if line == _NO_LOGIN:
        return LoginError("user or password is wrong, or missing: darner://user:password@host")
    if rest.startswith(b"no such reserved item"):
        return ReservationLostError("this reservation is no longer held: the item went back to its queue")
    return NotPermittedError(text) if rest.startswith(b"not permitted") else BadRequestError(text)


def error_in(reply: Reply) -> ClientError:
    """Return the error that a reply stands for that is not as expected."""
    return error_of(reply.line) or ProtocolError(f"this is no answer to what was asked: {reply.line[:60]!r}")


def check_refused(reply: Reply) -> Reply:
    """Return the reply unless the server refuses to do such things; then raise RefusedError."""
    error = None if reply.line is STORED else error_of(reply.line)
    if isinstance(error, RefusedError):
        raise error
    return reply


def check(reply: Reply, *expected: bytes) -> Reply:
    """Return the reply if its last line is one of these; else raise the error that it stands for."""
    if reply.line in expected:
        return reply
    raise error_in(reply)


def version_of(reply: Reply) -> str:
    """Return the version in a reply to `version`; else raise the error that it stands for."""
    word, _, version = reply.line.decode(errors="replace").partition(" ")
    if word != "VERSION":
        raise error_in(reply)
    return version


def figures(line: bytes) -> dict[str, int]:
    """Return the numbers that the line of a reply to `mg` tells, each by its flag."""
    return {flag.decode(): int(number) for flag, number in _FIGURE.findall(line)}


def least_status(replies: Sequence[Reply]) -> str:
    """Return the status of several servers from their replies: that of the one which does least."""
    return STATUSES[max(STATUS_REPLIES.index(reply.line) for reply in replies)]


def item_number(token: int) -> int:
    """Return the id of the item that a token names."""
    return token & ((1 << _ID_BITS) - 1)


def attempts(token: int) -> int:
    """Return how often the item of a token has come back before this delivery."""
    return token >> _ID_BITS


def queue_of(value: Value, keys: Sequence[bytes]) -> bytes:
    """Return which of the queues that were asked an item is from; ProtocolError if from none.

    The server names the key as asked, options included; a Kestrel names the bare queue.
    """
    if len(keys) == 1:
        return keys[0]
    for key in keys:
        if value.key == key or value.key.startswith(key + b"/") or value.key == key.partition(_CURSOR)[0]:
            return key
    raise ProtocolError(f"an item came of a queue that was not asked: {value.key[:60]!r}")
