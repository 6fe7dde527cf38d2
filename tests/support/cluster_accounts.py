"""One nats-server for all servers of a test run that keep their queues in a cluster, an account for each."""

import contextlib
import itertools
import tempfile
from pathlib import Path

from nats_cluster import nats_cluster

# How many servers a test run may start; the last ones share nothing with the first ones either.
ACCOUNTS = 400


class ClusterAccounts:
    """A cluster of one node, in which each data directory has an account of its own in its place."""

    def __init__(self) -> None:
        self._ends = contextlib.ExitStack()
        self._numbers = itertools.count()
        self._users: dict[Path, str] = {}
        directory = Path(self._ends.enter_context(tempfile.TemporaryDirectory(prefix="darner-nats-")))
        accounts = "\n".join(
            f"A{n}: {{jetstream: enabled, users: [{{user: u{n}, password: p}}]}}" for n in range(ACCOUNTS)
        )
        extra = f"""
accounts {{
SYS: {{users: [{{user: sys, password: p}}]}}
{accounts}
}}
system_account: SYS
"""
        cluster = self._ends.enter_context(nats_cluster(directory, 1, sync_interval="always", extra=extra))
        self.node = cluster.nodes[0]
        self._place = cluster.urls[0].removeprefix("nats://")

    def options(self, data: Path) -> tuple[str, ...]:
        """Return what is given to a server in place of `--data`."""
        user = self._users.get(data)
        if user is None:
            user = self._users[data] = f"u{next(self._numbers)}"
        return ("--store", f"nats://{user}:p@{self._place}")

    @property
    def settings(self) -> str:
        """What stands at the top of a server's configuration file."""
        return f'store_system = "nats://sys:p@{self._place}"\nreplicas = 1\n'

    def close(self) -> None:
        """End the node."""
        self._ends.close()
