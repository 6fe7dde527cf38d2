"""Python's garbage collector, kept from stopping the server.

Nearly all objects of a request are freed by reference counting. Only cycles need the collector, which goes
through objects in one go: through all there are every now and then, 0.2 s with 10,000 queues. So it looks at
few objects at a time, and those that it has found alive twice are frozen: it never looks at them again.
Whatever lives long must therefore be free of cycles when it ends.
"""

import gc
from typing import Any

# How many new objects there are until the collector looks at these, for a millisecond at most; and how many
# such looks until it looks at those that they found alive.
YOUNG_OBJECTS = 5_000
YOUNG_LOOKS = 4


def limit_pauses() -> None:
    """Freeze the objects there are, and from now on those that live long."""
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, YOUNG_LOOKS)
    gc.callbacks.append(_freeze)


def _freeze(phase: str, info: dict[str, Any]) -> None:
    if phase == "stop" and info["generation"] > 0:
        gc.freeze()
