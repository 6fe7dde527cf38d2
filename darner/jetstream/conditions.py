"""What must hold before queues are kept in a cluster: the version of its nodes, and that they sync."""

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from darner.config.settings import QueueSettings
from darner.errors import StartError
from darner.jetstream.link import Link, status_of

# Earlier ones lose what they have acknowledged in ways that have been mended: see docs/scale-out.md.
LEAST_VERSION = (2, 14, 5)
# How long, in seconds, all nodes have to answer.
ANSWERS_S = 1.0

# How safe an item is when its set is acknowledged: on the disks of a majority, or in its memory.
SYNCED, REPLICATED = "synced", "replicated"


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


async def check_versions(link: Link) -> None:
    """Raise StartError if a node of the cluster is too old."""
    answers = await link.ask_all("$SYS.REQ.ACCOUNT.PING.CONNZ", b'{"limit":1}', ANSWERS_S)
    servers = [
        msgspec.json.decode(answer.data).get("server", {}) for answer in answers if not status_of(answer)
    ]
    found = {server.get("name", "?"): str(server.get("ver", "")) for server in servers}
    found = found or {"this one": link.version}
    least = ".".join(map(str, LEAST_VERSION))
    for name, version in sorted(found.items()):
        if _number(version) < LEAST_VERSION:
            raise StartError(
                f"node {name} of the cluster is nats-server {version}: upgrade it to {least} or later"
            )


async def check_sync(system: Link) -> None:
    """Raise StartError if a node of the cluster does not sync what it stores before it acknowledges. Only the
    system account is told of that setting."""
    answers = await system.ask_all("$SYS.REQ.SERVER.PING.JSZ", b"{}", ANSWERS_S)
    if not answers or any(map(status_of, answers)):
        raise StartError("no node of the cluster answers at store_system: give a user of its system account")
    for answer in answers:
        said: dict[str, Any] = msgspec.json.decode(answer.data)
        if not said.get("data", {}).get("config", {}).get("sync_always"):
            name = said.get("server", {}).get("name", "?")
            raise StartError(
                f"node {name} of the cluster acknowledges before it syncs: set sync_interval: always in its "
                f'jetstream block, or say durability = "{REPLICATED}" if the memory of a majority is enough'
            )


def unserved(settings: QueueSettings, parents: QueueSettings | None, durability: str) -> Iterator[str]:
    """Give what is set for a queue and cannot be kept in a cluster, with the reason. `parents` are the
    settings of its parent, if it is a child."""
    for key, value in (
        ("max_bytes", settings.max_bytes),
        ("expire_to_queue", settings.expire_to_queue),
        ("max_queue_age", settings.max_queue_age_ms),
    ):
        if value is not None:
            yield f"{key} is not served by a cluster"
    if settings.sync_ms is not None and durability != SYNCED:
        yield f'sync is not served with durability = "{durability}"'
    if parents is not None:
        for key in ("max_items", "discard_old_when_full", "max_age_ms", "dedup_window_ms", "durable"):
            if getattr(settings, key) != getattr(parents, key):
                yield f"{key.removesuffix('_ms')} differs from the parent's: in a cluster a family shares it"
