"""How many connections the server takes: strangers must not take descriptors from clients and queues."""

import weakref
from typing import Protocol

from darner.access.descriptors import shares
from darner.access.throttled_warning import ThrottledWarning
from darner.wire.clients import Clients


class Abortable(Protocol):
    """A connection that can be closed at once."""

    def abort(self) -> None:
        """Close it without sending what is left."""


class Capacity:
    """The room for connections: admitted, pending and refused ones, and the files of large items."""

    def __init__(
        self, clients: Clients, *, max_connections: int | None = None, other_connections: int = 0
    ) -> None:
        """`max_connections` is the limit the operator sets. `other_connections` take descriptors, too, and
        are counted elsewhere."""
        self._clients = clients
        share = shares()
        # how many may be admitted at a time
        self.max_connections = max(1, share.connections - other_connections)
        if max_connections is not None:
            self.max_connections = min(self.max_connections, max_connections)
        self._max_refused = share.refused
        clients.max_connections = self.max_connections
        clients.descriptors = share.connections
        clients.files_granted = share.large_items
        clients.on_files_refused = self._warn_of_files
        # Connections that are neither admitted nor refused. Weak: one that fails its TLS handshake is only
        # dropped by the event loop.
        self.pending: weakref.WeakSet[Abortable] = weakref.WeakSet()
        # Connections that are refused, and stay open until the client has read why.
        self.refused: set[Abortable] = set()
        # whether no connection is admitted any more
        self.is_closed = False
        self._too_many = ThrottledWarning("too many connections")
        self._too_many_files = ThrottledWarning("too many large items are being sent")

    def has_room(self) -> bool:
        """Return whether the connections there are, pending ones included, are within the limits. If not,
        count and log a refusal."""
        clients = self._clients
        connections = len(clients.connections) + len(self.pending)
        if connections <= self.max_connections and connections + clients.files <= clients.descriptors:
            return True
        self._note_refusal()
        return False

    def may_begin_handshake(self) -> bool:
        """Return whether a pending connection may begin its TLS handshake.

        A client can only be told that there is no room once the handshake is over, so as many more may begin
        one as can be told so.
        """
        connections = len(self._clients.connections) + len(self.pending) + len(self.refused)
        if connections <= self.max_connections + self._max_refused:
            return True
        self._note_refusal()
        return False

    def may_linger(self) -> bool:
        """Return whether one more refused connection may stay open until its client has read why."""
        return len(self.refused) < self._max_refused

    def _note_refusal(self) -> None:
        self._clients.counters.rejected_connections += 1
        self._too_many.log(
            connections=len(self._clients.connections),
            arriving=len(self.pending),
            action="raise max_connections, or the limit of open files (ulimit -n, LimitNOFILE)",
        )

    def _warn_of_files(self) -> None:
        self._too_many_files.log(
            files=self._clients.files,
            connections=len(self._clients.connections),
            action="set idle_timeout, or raise the limit of open files (ulimit -n, LimitNOFILE)",
        )

    def close(self) -> None:
        """Close all connections that are not admitted, and those that come from now on: their TLS handshakes
        may be under way."""
        self.is_closed = True
        for connection in [*self.pending, *self.refused]:
            connection.abort()
