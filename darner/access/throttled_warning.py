"""Warnings about strangers, who must not be able to fill the log."""

import time

import structlog

log = structlog.get_logger()

# How long, in seconds, a warning is not repeated.
REPEAT_S = 60.0


class ThrottledWarning:
    """A warning of the log that is written at most once a minute, with how often it was due since."""

    def __init__(self, event: str) -> None:
        self._event = event
        self._times = 0
        self._next = 0.0

    def log(self, **fields: object) -> None:
        """Count one more occurrence, and write the warning if a minute has passed since the last one."""
        self._times += 1
        now = time.monotonic()
        if now >= self._next:
            log.warning(self._event, times=self._times, **fields)
            self._times = 0
            self._next = now + REPEAT_S
