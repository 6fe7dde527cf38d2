"""The thread that writes the log to standard error, so that nobody waits for whoever reads that."""

import io
import os
import select
import sys
from collections.abc import Callable
from threading import Condition, Thread

from darner.server.stdio import STDERR

# How much may wait to be written: more than the log of a busy day.
MAX_PENDING_BYTES = 1 << 20
# How much is written at once: what a pipe takes.
PIECE_BYTES = 64 << 10
# How long, in seconds, a reader that does not read is waited for at the end.
DRAIN_S = 2.0


class LogWriter(io.TextIOBase):
    """A text file whose writers never wait: a thread writes their text to a descriptor.

    Lines for which there is no room are dropped; the log says how many as soon as there is room again.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, descriptor: int, notice: Callable[[int], str]) -> None:
        """`notice` returns the line that says how many were dropped."""
        super().__init__()
        self._descriptor = descriptor
        self._notice = notice
        self._pending = bytearray()
        self._is_writing = False
        self._dropped = 0
        self._changed = Condition()
        Thread(target=self._run, name="log", daemon=True).start()

    def write(self, text: str) -> int:
        """Have `text` written, if there is room."""
        data = text.encode(self.encoding, self.errors)
        with self._changed:
            if len(self._pending) + len(data) > MAX_PENDING_BYTES:
                self._dropped += text.count("\n")
            else:
                self._pending += data
                self._changed.notify_all()
        return len(text)

    def drain(self, seconds: float = DRAIN_S) -> None:
        """Wait until all is written, but no longer than that."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._pending or self._is_writing), seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending)
                data, self._pending = self._pending, bytearray()
                if self._dropped:
                    data += self._notice(self._dropped).encode(self.encoding, self.errors)
                    self._dropped = 0
                self._is_writing = True
            unwritten = self._write_all(data)
            with self._changed:
                self._dropped += unwritten
                self._is_writing = False
                self._changed.notify_all()

    def _write_all(self, data: bytearray) -> int:
        """Write to the descriptor; returns how many lines could not be written."""
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._descriptor, left[:PIECE_BYTES]) :]
            except BlockingIOError:  # another process that has the file open may have made it non-blocking
                writable = select.poll()
                writable.register(self._descriptor, select.POLLOUT)
                writable.poll()
            except OSError:  # its disk is full, or its reader has gone
                return bytes(left).count(b"\n")
        return 0


def replace_stderr(notice: Callable[[int], str]) -> LogWriter:
    """Have a `LogWriter` write all that goes to standard error from now on, tracebacks included."""
    writer = LogWriter(STDERR, notice)
    sys.stderr = writer
    return writer
