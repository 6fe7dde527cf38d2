"""The Python client: it hands work to darner's queues and takes it from them.

Only the standard library is needed: nothing of the server is imported, and nothing compiled. What decides
about the protocol, a fleet or a reservation does no I/O, and the sync and the async client share it. Stands
on `darner.errors`. asyncio is imported only with the async client.
"""

import importlib
from typing import TYPE_CHECKING, Any

from darner.client.client import Client
from darner.client.codecs import JSON, Codec
from darner.client.errors import (
    BadRequestError,
    ClientError,
    CodecError,
    ConnectionFailedError,
    ConnectionLostError,
    ItemTooLargeError,
    LoginError,
    NoFreeConnectionError,
    NotPermittedError,
    ProtocolError,
    PutManyError,
    QueueFullError,
    RequestTimeoutError,
    ReservationLostError,
    ServerFailedError,
)
from darner.client.item import Item
from darner.client.reserving import Reservation
from darner.client.stats import QueueStats, ServerStats

if TYPE_CHECKING:
    from darner.client.async_client import AsyncClient
    from darner.client.async_reserving import AsyncReservation
else:
    _ASYNC = {"AsyncClient": "async_client", "AsyncReservation": "async_reserving"}

    def __getattr__(name: str) -> Any:
        if name not in _ASYNC:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_ASYNC[name]}"), name)


__all__ = [
    "JSON",
    "AsyncClient",
    "AsyncReservation",
    "BadRequestError",
    "Client",
    "ClientError",
    "Codec",
    "CodecError",
    "ConnectionFailedError",
    "ConnectionLostError",
    "Item",
    "ItemTooLargeError",
    "LoginError",
    "NoFreeConnectionError",
    "NotPermittedError",
    "ProtocolError",
    "PutManyError",
    "QueueFullError",
    "QueueStats",
    "RequestTimeoutError",
    "Reservation",
    "ReservationLostError",
    "ServerFailedError",
    "ServerStats",
]
