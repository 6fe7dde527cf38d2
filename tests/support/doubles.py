"""Doubles of threads, clients, the event loop, a logger and a disk, for tests without a server."""

import errno
import os
import socket
from types import SimpleNamespace

from darner.environment.offload import at_once
from darner.journal import leveldb
from darner.journal.segment_file import FRAME_BYTES
from darner.queues.upload import Upload
from darner.wire.peer import TCP_ESTABLISHED

RECORD_HEAD_BYTES = 28
# the text of LevelDB's error
FULL = f"IO error: a/file: {os.strerror(errno.ENOSPC)}"


def record(data):
    """Return an item's data as the parser returns it: with room for the record's head before it."""
    return bytes(RECORD_HEAD_BYTES) + data


def reserve(holds, source, count):
    """Reserve and hold so many items, oldest first; return them."""
    items = [source.reserve() for _ in range(count)]
    for item in items:
        holds.add(source, item)
    return items


def begin_upload(queue, size, targets=None):
    """Begin a large item for a queue, or for `targets`, as the broker does."""
    queue.check(size)
    return Upload(queue, targets)


class Silence:
    """A logger that keeps its lines and writes nothing."""

    def __init__(self):
        self.lines = []

    def debug(self, event, **fields):
        self.lines.append((event, fields))

    info = warning = error = exception = debug


class Client:
    """A client that counts the replies held back, and the slots of failed ones."""

    def __init__(self):
        self.held = 0
        self.failed = []

    def hold(self):
        self.held += 1

    def release(self):
        assert self.held
        self.held -= 1

    def fail(self, slot, error):
        assert self.held
        self.failed.append(slot)


class Offload:
    """Threads whose tasks run when a test says so."""

    def __init__(self):
        self.tasks = []

    def __call__(self, work, done):
        self.tasks.append((work, done))

    def run(self, index=0):
        """Run the oldest task, or the one at this index."""
        at_once(*self.tasks.pop(index))

    def run_all(self):
        """Run all tasks, and those that they add."""
        while self.tasks:
            self.run()


class Timer:
    """A call at a time in ms."""

    def __init__(self, due, work):
        self.due = due
        self.work = work

    def cancel(self):
        self.work = None


class Loop:
    """An event loop that runs when a test says so; `clock` returns its time in ms."""

    def __init__(self, clock):
        self.clock = clock
        self.soon = []
        self.timers = []

    def time(self):
        return self.clock() / 1000

    def call_soon(self, work, *arguments):
        self.soon.append((work, arguments))

    def call_later(self, seconds, work):
        timer = Timer(self.clock() + round(seconds * 1000), work)
        self.timers.append(timer)
        return timer

    def run(self):
        """Run the calls that are due at once; return whether there were any."""
        soon, self.soon = self.soon, []
        for work, arguments in soon:
            work(*arguments)
        return bool(soon)

    def next_timer(self, until):
        """Take the first timer due by then; None if there is none."""
        timers = [timer for timer in self.timers if timer.work is not None]
        first = min(timers, key=lambda timer: timer.due, default=None)
        if first is None or first.due > until:
            self.timers = timers
            return None
        self.timers = [timer for timer in timers if timer is not first]
        return first


class Transport:
    """The client's end of a connection without a socket."""

    def __init__(self, loop, protocol):
        self._loop = loop
        self._protocol = protocol
        self.sent = b""
        self.closed = False
        # whether the server has closed its sending side
        self.ended = False
        self._socket = SimpleNamespace(
            family=socket.AF_INET,
            setsockopt=lambda *_: None,
            getsockopt=lambda *_: bytes([TCP_ESTABLISHED]),
        )
        protocol.connection_made(self)

    def get_extra_info(self, name):
        # as over TLS, so that the connection writes to the transport
        return {"socket": self._socket, "sslcontext": True, "peername": ("192.0.2.7", 4711)}[name]

    def write(self, data):
        assert not self.closed
        assert not self.ended
        self.sent += data

    def write_eof(self):
        self.ended = True

    def can_write_eof(self):
        return True

    def get_write_buffer_size(self):
        return 0

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass

    def is_closing(self):
        return self.closed

    def close(self):
        if not self.closed:
            self.closed = True
            self._loop.call_soon(self._protocol.connection_lost, None)

    abort = close


def unmap(log):
    """Unmap the log's segments and keep their content."""
    segment, files = log.segment, segments_of(log)
    at = segment.used_bytes
    if at:
        memory = log._files[-1]._memory if log._files[-1].is_intact else bytearray(at + FRAME_BYTES)
        before = memory[at : at + FRAME_BYTES]
        segment.end()  # which writes an end
        memory[at : at + FRAME_BYTES] = before
    for file in files:
        file.unmap()


def segments_of(log):
    """Return the open segment files of a log."""
    return [file for file in (*log._files, *log._pool.used, log._pool.ready) if file is not None]


def let_go(log):
    """Close the log's files as the end of the process would."""
    unmap(log)
    for file in segments_of(log):
        file.close()


class Disk:
    """LevelDB on a disk that fails when a test says so.

    `failures`: for each of the next writes, whether it fails "before" or "after" it is done, or None.
    `refuses`: whether LevelDB cannot be opened. `full`: asked before each open and write whether the disk is
    full. A handle that has failed must not be written to again: LevelDB would lose what it accepts.
    """

    def __init__(self, monkeypatch):
        self.failures = []
        self.refuses = False
        self.full = lambda: False
        self.writes = 0
        self.handles = []
        self._open = leveldb.DB
        monkeypatch.setattr(leveldb, "DB", self.open)

    def open(self, *args, **options):
        if self.refuses:
            raise leveldb.Error("no space left to open it")
        if self.full():
            raise leveldb.Error(FULL)
        handle = Handle(self, self._open(*args, **options))
        self.handles.append(handle)
        return handle

    def drop(self):
        """Close all handles, as the end of the process would."""
        for handle in self.handles:
            handle.close()
        self.handles.clear()


class Handle:
    def __init__(self, disk, db):
        self.disk = disk
        self.failed = False
        self._db = db

    def __getattr__(self, name):
        return getattr(self._db, name)

    def write_batch(self, *, sync):
        assert sync
        assert not self.failed
        return WriteBatch(self, self._db.write_batch(sync=True))


class WriteBatch:
    def __init__(self, handle, batch):
        self._handle = handle
        self._batch = batch

    def __getattr__(self, name):
        return getattr(self._batch, name)

    def write(self):
        disk = self._handle.disk
        assert not self._handle.failed
        if disk.full():
            self._handle.failed = True
            raise leveldb.Error(FULL)
        failure = disk.failures.pop(0) if disk.failures else None
        if failure != "before":
            self._batch.write()
            disk.writes += 1
        if failure is not None:
            self._handle.failed = True
            raise leveldb.Error("no space left")
