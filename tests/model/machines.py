"""What both state machines share: Hypothesis's settings and a data directory in memory."""

import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings

EXAMPLES = "DARNER_EXAMPLES"


def profile(max_examples: int, **more: object) -> settings:
    """Return the settings of a state machine; DARNER_EXAMPLES in the environment sets another number."""
    return settings(
        deadline=None,
        report_multiple_bugs=False,
        max_examples=int(os.environ.get(EXAMPLES, max_examples)),
        stateful_step_count=40,
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.filter_too_much,
        ],
        **more,
    )


def new_directory() -> Path:
    """Make a directory, in memory if that is possible."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="darner-model", dir=memory if memory.exists() else None))
