"""Keeps Python's collector from holding everybody up.

Nearly all that requests leave behind is freed by counting. For the rest, which refers to itself, the
collector goes through objects in one go: through all there are every now and then, 0.2 s with 10,000 queues.
So it looks at little at a time, and what it has found alive twice is not looked at again: whatever lives long
must be free of cycles when it ends.
"""

import gc
from typing import Any

# How many more objects than before there are until it looks at these, for a ms at most; and how many such
# looks there are until it looks at what was found alive in them.
YOUNG = 5_000
LOOKS = 4


def start() -> None:
    """Leave alone what there is, and from now on what lives long."""
    gc.freeze()
    gc.set_threshold(YOUNG, LOOKS)
    gc.callbacks.append(_leave_alone)


def _leave_alone(phase: str, info: dict[str, Any]) -> None:
    if phase == "stop" and info["generation"] > 0:
        gc.freeze()
