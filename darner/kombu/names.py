"""The names that kombu's queues and exchanges have on the server.

| on the server | what it is |
| --- | --- |
| `q` | the queue `q`: its messages of priority 0, and all messages if it has no priorities |
| `q#7` | its messages of priority 7 |
| `x#bindings` | the table of what is bound to the exchange `x`, direct or topic |
| `q#in`, `q#in+q`, `q#7#in` | what direct and topic exchanges gave to a queue that ends by itself: it is not
made again by a message |
| `x#fanout`, `x#fanout+q` | the fanout exchange `x`, and what it gave to its queue `q` |

A character of kombu's name that a queue's may not have, or that means something here, is percent-encoded.
"""

import re
from functools import lru_cache

from darner.client import protocol

# The highest priority that a message may have.
MOST_URGENT = 9

_ENCODED = re.compile(rb"[\x00-\x20/\x7f+#%]")


@lru_cache(maxsize=4096)
def encoded(name: str) -> bytes:
    """Return a name of kombu as the server has it. Raises BadRequestError if it is empty or too long."""
    return protocol.queue_key(_ENCODED.sub(lambda found: b"%%%02X" % ord(found[0]), name.encode()))


@lru_cache(maxsize=4096)
def priority_queue(queue: str, priority: int) -> bytes:
    """Return the name of the queue of one priority."""
    return encoded(queue) + b"#%d" % priority if priority else encoded(queue)


def bindings(exchange: str) -> bytes:
    """Return the name of the table of an exchange."""
    return encoded(exchange) + b"#bindings"


def inbox(queue: str, priority: int = 0) -> bytes:
    """Return the name by which exchanges give messages to a queue that may have ended."""
    return priority_queue(queue, priority) + b"#in"


def inbox_child(queue: str, priority: int = 0) -> bytes:
    """Return the name of what they gave it."""
    return b"%b+%b" % (inbox(queue, priority), encoded(queue))


def fanout(exchange: str) -> bytes:
    """Return the name of a fanout exchange."""
    return encoded(exchange) + b"#fanout"


def fanout_child(exchange: str, queue: str) -> bytes:
    """Return the name of what a fanout exchange gave to a queue."""
    return b"%b+%b" % (fanout(exchange), encoded(queue))
