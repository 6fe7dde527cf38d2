"""The settings of a server, as it tells them to everybody."""

import os
from pathlib import Path
from urllib.parse import unquote_to_bytes

from darner.client import protocol
from darner.client.client import Client
from darner.client.pool import Pool
from darner.client.servers import Servers
from darner.errors import ToolError


def data_directory(client: Client) -> Path | None:
    """Return the data directory of a client's only server, on the machine of that server; None if it is
    older than this setting. Raises as `Client.stats` does, and ToolError if its queues are in a cluster."""
    servers = client.servers
    (found,) = (_settings(servers, pool) for pool in servers.pools)
    if "store" in found:
        raise ToolError(
            f"that server keeps its queues in the cluster {found['store']}, and has no data directory: back"
            " that up, or export its queues"
        )
    path = found.get("data")
    return None if path is None else Path(os.fsdecode(unquote_to_bytes(path)))


def can_sync(servers: Servers, pool: Pool) -> bool:
    """Return whether a server takes sets with `/sync`: not if its cluster keeps items in memory first. Raises
    as `Client.stats` does."""
    return _settings(servers, pool).get("durability") != "replicated"


def _settings(servers: Servers, pool: Pool) -> dict[str, str]:
    return dict(protocol.check(servers.ask_again(pool, protocol.SETTINGS_STATS), protocol.END).stats)
