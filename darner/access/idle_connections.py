"""Connections that are dead or idle, and are closed."""

import structlog

from darner.wire.clients import Clients

log = structlog.get_logger()


def close_idle(clients: Clients, timeout_s: int | None) -> None:
    """Close connections whose client has gone unnoticed, or has sent no request for `timeout_s` seconds (None
    is for ever); to be called once a second."""
    closed = 0
    for connection in list(clients.connections):
        if connection.is_waiting:
            # a client that is gone would otherwise be noticed only when the next item comes
            connection.has_disconnected()
            connection.idle_sweeps = 0
            continue
        if timeout_s is None:
            continue
        if not connection.is_idle:
            connection.idle_sweeps = 0
            continue
        connection.idle_sweeps += 1
        # the first sweep may come at once
        if connection.idle_sweeps > timeout_s:
            closed += 1
            connection.abort()
    if closed:
        log.info("closed idle connections", connections=closed, idle_timeout_s=timeout_s)
