"""The settings that a declared queue has on the server."""

from collections.abc import Mapping
from typing import Any

# How many messages one connection may hold: what AMQP's prefetch can say at most.
MOST_HELD = 65_535
# How long a queue that is deleted with its last consumer outlives it, if it does not say.
_TEMPORARY_MS = 60_000
# How long messages wait in such a queue, if it does not say.
_TEMPORARY_MESSAGE_MS = 86_400_000


def of_queue(arguments: Mapping[str, Any], *, is_temporary: bool) -> dict[str, str]:
    """Return the settings for a queue with these arguments, as RabbitMQ names them."""
    settings = {"max_open_reads": str(MOST_HELD)}
    expires = arguments.get("x-expires") or (_TEMPORARY_MS if is_temporary else None)
    ttl = arguments.get("x-message-ttl")
    if expires is not None:
        settings["max_queue_age"] = f"{expires}ms"
    if is_temporary:
        # a queue ends once it loses what nobody fetches
        most = arguments.get("x-expires") or _TEMPORARY_MESSAGE_MS
        ttl = most if ttl is None else min(ttl, most)
    if ttl is not None:
        settings["max_age"] = f"{ttl}ms"
    for argument, setting in (("x-max-length", "max_items"), ("x-max-length-bytes", "max_bytes")):
        if argument in arguments:
            settings[setting] = str(arguments[argument])
            refuses = arguments.get("x-overflow") == "reject-publish"
            settings["discard_old_when_full"] = "false" if refuses else "true"
    return settings


def configure_line(queue: bytes, settings: Mapping[str, str]) -> bytes:
    """Return the request that sets them."""
    words = " ".join(f"{name}={value}" for name, value in settings.items())
    return b"configure %b %b\r\n" % (queue, words.encode())
