"""A message as the bytes of an item: a line of JSON with all but the body, then the body as it is."""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from kombu.message import Message
from kombu.utils.json import dumps, loads

# How often an item has come back, as RabbitMQ names it.
_DELIVERY_COUNT = "x-delivery-count"


def encode(message: Mapping[str, Any]) -> bytes:
    """Return the bytes of a message as `Channel.prepare_message` makes it."""
    body = message["body"]
    head = {key: value for key, value in message.items() if key != "body"}
    return b"%b\n%b" % (dumps(head).encode(), body.encode() if isinstance(body, str) else body)


def decode(data: bytes, channel: Any, tag: int, attempts: int) -> Message:
    """Return the message in an item. One that is none of kombu's becomes a message with these bytes as its
    body."""
    line, _, body = data.partition(b"\n")
    try:
        head = loads(line)
        properties, headers = head["properties"], head["headers"]
        info = dict(properties["delivery_info"])
    except (ValueError, TypeError, KeyError):
        head = {"content-type": "application/data", "content-encoding": "binary"}
        body, properties, headers, info = data, {}, {}, {}
    info |= {"redelivered": attempts > 0, "priority": properties.get("priority")}
    if attempts:
        headers[_DELIVERY_COUNT] = attempts
    return Message(
        body=body,
        channel=channel,
        delivery_tag=tag,
        content_type=head.get("content-type"),
        content_encoding=head.get("content-encoding"),
        headers=headers,
        properties=properties,
        delivery_info=info,
    )


def expiry_s(message: Mapping[str, Any]) -> float:
    """Return for how many seconds a message is of use; 0 is for ever."""
    # in ms, as AMQP has it
    return float(message["properties"].get("expiration") or 0) / 1000


def delay_s(message: Mapping[str, Any], least_s: float | None) -> float:
    """Return how long a task with an ETA may wait in the server: until then, or 0 if that is not `least_s`
    ahead."""
    eta = message["headers"].get("eta")
    if least_s is None or not isinstance(eta, str):
        return 0
    try:
        at = datetime.fromisoformat(eta)
    except ValueError:
        return 0
    ahead = ((at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    return ahead if ahead >= least_s else 0


def id_of(message: Mapping[str, Any], data: bytes) -> bytes | None:
    """Return what names this one sending of a message, however often it is tried; None if nothing does.

    A retry of a task has the id of the task, so that alone does not tell them apart; all bytes together do.
    """
    properties = message["properties"]
    if not (message["headers"].get("id") or properties.get("message_id") or properties.get("correlation_id")):
        return None
    return hashlib.blake2b(data, digest_size=16).hexdigest().encode()
