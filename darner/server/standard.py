"""Standard input, output and error: that there are such, and that nobody has to wait for who reads the
last."""

import io
import os
import select
import sys
from collections.abc import Callable
from threading import Condition, Thread

STDERR = 2
# How much may wait to be written. The log of a busy day is less.
MOST_BYTES = 1 << 20
# How much is written at once: what a pipe takes.
PIECE_BYTES = 64 << 10
# How long a reader who does not read has at the end, in seconds.
DRAIN_S = 2.0


def open_all() -> None:
    """Open /dev/null in the place of each of the three that is closed: else a socket or a file of ours
    would get its number. What cannot be encoded is written with backslashes. To be called before any other
    file is opened.
    """
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which gets the lowest number
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))
    for file in (sys.stdout, sys.stderr):
        if isinstance(file, io.TextIOWrapper):
            file.reconfigure(errors="backslashreplace")


class Writer(io.TextIOBase):
    """A text file that never has its writers wait: a thread writes what they wrote to a descriptor. Lines for
    which there is no room are dropped, and how many these are is said as soon as there is some."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, descriptor: int, notice: Callable[[int], str]) -> None:
        """`notice` gives the line that says how many were dropped."""
        super().__init__()
        self._descriptor = descriptor
        self._notice = notice
        self._pending = bytearray()
        self._is_writing = False
        self._dropped = 0
        self._changed = Condition()
        Thread(target=self._serve, name="log", daemon=True).start()

    def write(self, text: str) -> int:
        """Have `text` written, if there is room."""
        data = text.encode(self.encoding, self.errors)
        with self._changed:
            if len(self._pending) + len(data) > MOST_BYTES:
                self._dropped += text.count("\n")
            else:
                self._pending += data
                self._changed.notify_all()
        return len(text)

    def drain(self, seconds: float = DRAIN_S) -> None:
        """Wait until all is written, but not for longer than that."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._pending or self._is_writing), seconds)

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending)
                data, self._pending = self._pending, bytearray()
                if self._dropped:
                    data += self._notice(self._dropped).encode(self.encoding, self.errors)
                    self._dropped = 0
                self._is_writing = True
            unwritten = self._put(data)
            with self._changed:
                self._dropped += unwritten
                self._is_writing = False
                self._changed.notify_all()

    def _put(self, data: bytearray) -> int:
        """Write it; returns how many lines could not be."""
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._descriptor, left[:PIECE_BYTES]) :]
            except BlockingIOError:  # whoever else has the file open may have set it so
                writable = select.poll()
                writable.register(self._descriptor, select.POLLOUT)
                writable.poll()
            except OSError:  # its disk is full, or its reader has gone
                return bytes(left).count(b"\n")
        return 0


def replace_stderr(notice: Callable[[int], str]) -> Writer:
    """Have all that is written to standard error from here on, tracebacks too, go through a `Writer`."""
    writer = Writer(STDERR, notice)
    sys.stderr = writer
    return writer
