"""What Dramatiq's tests import from their `common`, which is not in its source package."""

import contextlib

import dramatiq
import pytest

RABBITMQ_CREDENTIALS = None
skip_on_pypy = skip_on_windows = skip_in_ci = pytest.mark.skipif(False, reason="")


@contextlib.contextmanager
def worker(broker, **options):
    """Run a worker."""
    running = dramatiq.Worker(broker, **options)
    running.start()
    try:
        yield running
    finally:
        running.stop()
