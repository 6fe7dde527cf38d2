"""Putting back what a client held when its connection closed."""

from collections.abc import Iterator

import structlog

from darner.queues.pending import Pending
from darner.wire.clients import Client, Clients

log = structlog.get_logger()


def return_holds(clients: Clients, client: Client, steps: Iterator[Pending | None]) -> None:
    """Put back the items that `client` held, in slices: `steps` are those of `Holds.release`. A journal in
    which too much is staged holds them up as it would a client. The client is one of the `clients` until they
    are done."""
    clients.run_in_slices(_returned(clients, client, steps))


def _returned(clients: Clients, client: Client, steps: Iterator[Pending | None]) -> Iterator[Pending | None]:
    try:
        yield from steps
    except Exception:
        # a fault of ours: those that did not go back do so at the next start
        log.exception("items stay reserved by an internal error", peer=client.address)
    clients.remove(client)
