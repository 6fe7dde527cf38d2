"""How the process's file descriptors are shared out, so that no use of them starves another.

Clients' connections, the files of large items that are being sent, and the LevelDBs of the queues each have
a share of the limit (RLIMIT_NOFILE, `ulimit -n`).
"""

import resource
from typing import NamedTuple

from darner.journal.open_databases import MAX_OPEN

# Parts of the limit: for admitted connections; for refused ones, which stay open until the client has read
# why; and for large items, however many connections there are.
CONNECTIONS_SHARE = 3 / 4
REFUSED_SHARE = 1 / 64
LARGE_ITEMS_SHARE = 1 / 32
# Connections that the port for metrics takes at once; they come out of the clients' share.
METRICS_CONNECTIONS = 8
# Descriptors of an open LevelDB, roughly: LOCK, LOG, MANIFEST, its log and tables.
DESCRIPTORS_PER_DATABASE = 8
# And of everything else: the log, the listeners, the event loop.
OTHER_DESCRIPTORS = 40


class Shares(NamedTuple):
    """How many of each there may be at once."""

    # connections, and together with these the files of large items
    connections: int
    # connections that are refused, and not closed yet
    refused: int
    # files of large items, whatever connections there are
    large_items: int
    # open LevelDBs
    databases: int


def shares() -> Shares:
    """Return the shares of the limit that the process has now."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    rest = limit * (1 - CONNECTIONS_SHARE - REFUSED_SHARE - LARGE_ITEMS_SHARE) - OTHER_DESCRIPTORS
    return Shares(
        int(limit * CONNECTIONS_SHARE),
        int(limit * REFUSED_SHARE),
        int(limit * LARGE_ITEMS_SHARE),
        max(2, min(MAX_OPEN, int(rest / DESCRIPTORS_PER_DATABASE))),
    )


def raise_limit() -> None:
    """Raise the soft limit of open files to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
