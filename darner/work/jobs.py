"""How a job may end."""

import math

# What the function raised; None if it returned.
Outcome = BaseException | None


class Retry(Exception):  # noqa: N818 - a wish, no error
    """Raised by the function to be given the item again after a pause, without a traceback in the log.

    The attempt counts as any other: the item goes to the dead letter queue after `max_attempts`.
    """

    def __init__(self, delay: float) -> None:
        """Ask for a pause of `delay` seconds."""
        if not (math.isfinite(delay) and delay >= 0):
            raise ValueError(f"delay is {delay}, and must be a number of seconds from 0")
        super().__init__(delay)
        self.delay = delay
