"""The settings of a server, as it tells them to everybody."""

import os
from pathlib import Path
from urllib.parse import unquote_to_bytes

from darner.client import protocol
from darner.client.client import Client


def data_directory(client: Client) -> Path | None:
    """Return the data directory of a client's only server, on the machine of that server; None if it is
    older than this setting. Raises as `Client.stats` does."""
    servers = client.servers
    (reply,) = servers.ask_all(
        lambda pool: protocol.check(servers.ask_again(pool, protocol.SETTINGS_STATS), protocol.END)
    )
    path = dict(reply.stats).get("data")
    return None if path is None else Path(os.fsdecode(unquote_to_bytes(path)))
