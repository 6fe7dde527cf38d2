"""The Python client: it hands work to darner's queues and takes it from them.

Only the standard library is needed: nothing of the server is imported, and nothing compiled. What decides
about the protocol, a fleet or a reservation does no I/O, and the sync and the async client share it. Stands
on `darner.errors`.
"""

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

__all__ = [
    "JSON",
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
