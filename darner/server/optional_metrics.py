"""Parts of the server that need a package which is installed only on demand."""

from typing import TYPE_CHECKING

from darner.errors import StartError

if TYPE_CHECKING:
    from darner.server.metrics import Metrics


def metrics_class() -> "type[Metrics]":
    """Return the class that serves metrics. Raises StartError if its package is not installed."""
    try:
        # not at the top: it takes time and memory, and only few need it
        from darner.server.metrics import Metrics  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "prometheus_client":
            raise
        raise StartError("metrics_port needs prometheus_client: pip install darner[metrics]") from error
    return Metrics
