"""The addresses of pages, and how they name a queue: as `stats` does, in printable ASCII."""

from urllib.parse import unquote_to_bytes, urlencode

from darner.client.protocol import queue_key
from darner.printable import shown


def link(path: str, **fields: object) -> str:
    """Return the address of a page; fields that are empty are left out."""
    return f"{path}?{urlencode({name: text for name, text in fields.items() if text})}".removesuffix("?")


def queue_id(name: str) -> str:
    """Return how an address names a queue."""
    return shown(name.encode(errors="surrogateescape"))


def queue_named(id: str) -> str:
    """Return the name of a queue from an address; BadRequestError if none can have it."""
    key = queue_key(unquote_to_bytes(id))
    return key.decode(errors="surrogateescape")
