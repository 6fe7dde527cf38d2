"""Darner as the broker of kombu, and so of Celery: `darner.kombu:Transport`.

What kombu asks of a transport lives here, and how messages, exchanges and priorities become darner's queues;
docs/celery.md tells users of it. Nothing of the server and nothing of Celery is imported. Stands on
`darner.client` and on kombu.
"""

try:
    import kombu.transport
except ImportError as error:
    raise ImportError("darner.kombu needs kombu 5.5 or later: pip install 'darner[celery]'") from error

from darner.kombu.transport import NamedTransport, Transport

__all__ = ["NamedTransport", "Transport"]

for _scheme in ("darner", "darners", "darner+unix"):
    kombu.transport.TRANSPORT_ALIASES[_scheme] = "darner.kombu:NamedTransport"
