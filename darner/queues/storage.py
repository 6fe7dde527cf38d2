"""Storage: what all queues of a data directory share on the disk."""

from pathlib import Path

from darner.environment.environment import Environment
from darner.environment.offload import Timed
from darner.journal.commit import Committer
from darner.journal.disk_reserve import RESERVE_NAME, Reserve
from darner.journal.wal import Log
from darner.queues.data_directory import LOG_NAME
from darner.queues.names import Directories


class Storage:
    """The directories, the log, the committer and the reserve of a data directory, which is locked."""

    def __init__(self, data: Path, environment: Environment, max_open: int) -> None:
        """Make the directory of the log if it is missing; nothing is read. Raises OSError."""
        self.directories = Directories(data)
        self.reserve = Reserve(data / RESERVE_NAME, environment.reserve_bytes())
        self.syncs = Timed(environment.offload, environment.stopwatch_ns)
        self.log = Log(data / LOG_NAME, environment.offload, self.syncs)
        self.committer = Committer(self.log, environment, max_open, self.reserve)
