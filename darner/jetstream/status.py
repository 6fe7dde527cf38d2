"""The status of a darner before a cluster: it is not kept, for nothing is."""

from pathlib import Path

from darner.errors import StatusError
from darner.queues.status import Status


class ClusterStatus(Status):
    """A status that ends with the process."""

    def __init__(self, grace_ms: int) -> None:
        super().__init__(Path(), grace_ms)

    def _write(self, name: str) -> None:
        """Keep nothing."""

    def refuse_waits(self) -> None:
        """Tell those who wait if fetches are refused from now on."""
        try:
            self.check_gets()
        except StatusError as error:
            self.on_quiescent(error)
