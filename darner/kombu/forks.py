"""Sockets that a child process must not share: what a dead parent had reserved goes back only once all copies
of its socket are closed."""

import os
import weakref
from typing import Protocol


class Closeable(Protocol):
    """What has a socket, and can close it without a word to the server."""

    def close(self) -> None:
        """Close the socket."""


_open: "weakref.WeakSet[Closeable]" = weakref.WeakSet()


def close_in_child(connection: Closeable) -> None:
    """Close the copy of this socket in each child process that is forked from now on."""
    _open.add(connection)


def _close_all() -> None:
    for connection in list(_open):
        connection.close()
    _open.clear()


os.register_at_fork(after_in_child=_close_all)
