"""The way in: each new connection is pending until it is admitted or refused.

Once it is admitted, a `Connection` takes over its transport and knows nothing of all this but the guard of
its user. What strangers could take from clients is rationed on this floor: descriptors (capacity.py), lines
of the log (throttled_warning.py), and the processors' time for hashes of passwords (password_queue.py).
"""

from darner._proto import Verb
from darner.access.auth_file import Users
from darner.access.authentication import Authentication
from darner.access.capacity import Capacity
from darner.access.guard import Guard
from darner.access.idle_connections import close_idle
from darner.access.pending_connection import PendingConnection
from darner.access.throttled_warning import ThrottledWarning
from darner.environment.offload import Offload
from darner.wire.clients import Clients


class Admission:
    """The admission to one server: called, it returns the protocol of a connection just accepted."""

    def __init__(
        self,
        clients: Clients,
        offload: Offload,
        *,
        users: Users | None = None,
        max_connections: int | None = None,
        idle_timeout_s: int | None = None,
        denied: frozenset[Verb] = frozenset(),
        other_connections: int = 0,
    ) -> None:
        """`idle_timeout_s`: how long a client may send no request; None is for ever. The others are those of
        `Capacity` and `Authentication`."""
        self._clients = clients
        self.capacity = Capacity(
            clients, max_connections=max_connections, other_connections=other_connections
        )
        self.authentication = Authentication(offload, users, denied)
        self._idle_timeout_s = idle_timeout_s
        self._handshake_failures = ThrottledWarning("TLS handshake failed")
        # how many connections were ever accepted
        self.accepted = 0

    def __call__(self) -> PendingConnection:
        """Return the protocol of a connection just accepted."""
        self.accepted += 1
        pending = PendingConnection(self._clients, self.capacity, self.authentication)
        self.capacity.pending.add(pending)
        return pending

    def note_failed_handshake(self, reason: str) -> None:
        """Log that a TLS handshake failed."""
        self._handshake_failures.log(reason=reason)

    def change_users(self, users: Users | None) -> None:
        """Log in these users from now on; None lets everybody in.

        Closes the connections of users who are gone or changed, so that nothing goes on that they may no
        longer do.
        """
        self.authentication.change_users(users)
        if users is None:
            return
        for connection in list(self._clients.connections):
            guard = connection.guard
            if not isinstance(guard, Guard) or users.get(guard.name) != guard.user:
                connection.abort()

    def sweep(self) -> None:
        """Close dead and idle connections, and forget failed logins; to be called once a second."""
        self.authentication.sweep()
        close_idle(self._clients, self._idle_timeout_s)

    def close(self) -> None:
        """Admit nobody any more, and close all connections that are not admitted."""
        self.authentication.checks.close()
        self.capacity.close()
