"""Dramatiq's messages on darner: `from darner.dramatiq import DarnerBroker`.

It stands on the client alone, which its threads share.
"""

try:
    import dramatiq  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "dramatiq":
        raise
    raise ModuleNotFoundError(
        "darner.dramatiq needs Dramatiq: pip install 'darner[dramatiq]'", name="dramatiq"
    ) from None

from darner.dramatiq.broker import DarnerBroker

__all__ = ["DarnerBroker"]
