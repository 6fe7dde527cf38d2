"""Taking one item at most once, with its id and flags, which `Client.get` does not return."""

from darner.client import fetching, protocol
from darner.client.client import Client
from darner.client.item import Item


def take(client: Client, queue: str, timeout: float) -> Item | None:
    """Take the next item off a queue; None if there is none for `timeout` seconds. Errors as `Client.get`."""
    keys = protocol.source_keys(queue)
    found = fetching.fetch(client.servers, keys, b"", timeout)
    if found is None:
        return None
    found.pool.give(found.connection)
    return Item(found.value, keys[0], str(found.pool.address), None)
