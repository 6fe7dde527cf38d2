"""Who may log in, what logging in costs, and what each user may do once logged in."""

import asyncio
import ipaddress
from collections import Counter

from darner._proto import Verb
from darner.access.auth_file import User, Users
from darner.access.guard import Guard
from darner.access.password_queue import PasswordChecks
from darner.access.throttled_warning import ThrottledWarning
from darner.environment.offload import Offload

# After so many failed logins of one address within a second, it waits for the replies to further ones: a
# client that tries again at once would keep the event loop busy.
QUICK_FAILURES = 10
FAILURE_S = 1.0
# How many sweeps, of a second each, an address that sent passwords comes behind those that sent fewer; twice
# as many at most.
FORGIVE_SWEEPS = 60


def address_of(transport: asyncio.BaseTransport) -> str:
    """Return the address by which logins of a connection are counted.

    An IPv6 address counts by its first 64 bits, for one host may have all the others. A Unix socket has none.
    """
    peer = transport.get_extra_info("peername")
    if not isinstance(peer, tuple):
        return ""
    host = str(peer[0])
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    return str(address.ipv4_mapped or ipaddress.IPv6Address(int(address) >> 64 << 64))


class Authentication:
    """The users of one server, and the logins that failed lately."""

    def __init__(
        self, offload: Offload, users: Users | None = None, denied: frozenset[Verb] = frozenset()
    ) -> None:
        """Without `users` nobody has to log in. `denied` are the verbs refused to all but admins."""
        self.users = users
        self._denied = denied
        # what a client may do that need not log in
        self.guard_without_login = Guard("", None, denied) if denied else None
        self.checks = PasswordChecks(offload)
        self.failures = ThrottledWarning("authentication failure")
        self.overloads = ThrottledWarning("logins that were not checked, for there were too many")
        # how many logins of an address have failed since the last sweep
        self._failed: Counter[str] = Counter()
        self._sweeps = 0

    def guard(self, name: str, user: User) -> Guard:
        """Return what a user who has logged in may do."""
        return Guard(name, user, self._denied)

    def count_failure(self, address: str) -> float:
        """Count a failed login of an address. Returns how long, in seconds, the reply to it has to wait."""
        self._failed[address] += 1
        return FAILURE_S if self._failed[address] > QUICK_FAILURES else 0

    def change_users(self, users: Users | None) -> None:
        """Log in these users from now on; None lets everybody in."""
        self.users = users
        self.checks.forget()

    def sweep(self) -> None:
        """Forget failed logins; to be called once a second."""
        self._failed.clear()
        self._sweeps += 1
        if self._sweeps % FORGIVE_SWEEPS == 0:
            self.checks.forgive()
