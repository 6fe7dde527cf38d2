"""Opening: the queues that a start finds in the data directory and in the log, and those tried again
later."""

import structlog

from darner._proto import valid_name
from darner.environment.environment import Environment
from darner.errors import InternalError, JournalError
from darner.journal.journal import Journal
from darner.journal.leveldb import failure
from darner.journal.wal import Log
from darner.journal.wal_recovery import Life
from darner.printable import shown
from darner.queues import events
from darner.queues.deletion import Deletion
from darner.queues.factory import QueueFactory
from darner.queues.names import log_stray, queue_directories
from darner.queues.out_of_service import OutOfService
from darner.queues.registry import Registry
from darner.queues.slices import SLICE_MS
from darner.queues.storage import Storage

log = structlog.get_logger()


def read_log(wal: Log) -> tuple[dict[bytes, list[Life]], list[str]]:
    """Return the lives of each queue in the log of an earlier process, oldest first, and a text for each
    damage. Raises OSError if the log cannot be read, JournalError if a later darner wrote it."""
    lives, damage = wal.recover()
    for name in [name for name in lives if not valid_name(name)]:
        del lives[name]
        damage.append(f'it has changes of "{shown(name)}", which is no name of a queue: they are left out')
    return lives, damage


def _failure(error: Exception) -> JournalError:
    """Return why a queue could not be opened."""
    if isinstance(error, JournalError):
        return error
    return failure("cannot open it", error) if isinstance(error, OSError) else InternalError(error)


class Opening:
    """Opens the queues of an earlier process. A queue that cannot be opened is tried again by `retry`."""

    def __init__(
        self,
        environment: Environment,
        storage: Storage,
        factory: QueueFactory,
        registry: Registry,
        deletion: Deletion,
        out_of_service: OutOfService,
    ) -> None:
        self._environment = environment
        self._storage = storage
        self._factory = factory
        self._registry = registry
        self._deletion = deletion
        self._out_of_service = out_of_service
        # what the log of the earlier process has of queues that are not open yet, by name; oldest life first
        self._lives: dict[bytes, list[Life]] = {}

    def open_all(self) -> None:
        """Open all queues that the data directory and the log have, and begin a new log. Raises OSError if
        either cannot be read, JournalError if a later darner wrote the log."""
        storage = self._storage
        self._lives, damage = read_log(storage.log)
        # not before it is known that this darner may use the directory: a start that is refused leaves
        # nothing
        storage.reserve.hold()
        for text in damage:
            log.error("log damaged", reason=text)
        directories = storage.directories
        found = list(queue_directories(directories.data, log_stray, self._deletion.resume_emptying))
        for name in dict.fromkeys([*map(directories.settle, found), *self._lives]):
            self._open_found(name)
        storage.log.begin()
        self._deletion.tick()

    def _open_found(self, name: bytes) -> None:
        try:
            self._open(name)
        except Exception as error:  # whatever it is, the others are to be served
            self._out_of_service.errors[name] = why = _failure(error)
            self._registry.add_child(name)
            self._storage.log.pin_found(name)
            events.log_out_of_service(name, why)

    def _open(self, name: bytes) -> None:
        """Open the queue `name`, or delete its files if the log says that it was deleted."""
        deletion = self._deletion
        lives = self._lives.get(name, [])
        path = self._storage.directories.path_of(name)
        was_deleted = bool(lives) and lives[-1].retired
        if not was_deleted:
            deletion.check(name)
        while not (was_deleted and (deletion.is_being_emptied(name) or not path.exists())):
            journal = self._factory.journal(name, lives)
            if not journal.state.deleted:
                self._serve(journal)
                break
            self._registry.remove(name)
            if not lives or journal.state.life == lives[-1].number:
                deletion.retire(journal)
                break
            # the directory is of an earlier life, and must have come back with the loss of the machine
            if not deletion.destroy(journal):
                self._storage.log.unpin(journal)
                raise JournalError(f"{path} is of a queue that was deleted, and cannot be moved away")
            if not was_deleted:
                deletion.check(name)
        self._lives.pop(name, None)

    def _serve(self, journal: Journal) -> None:
        name = journal.name
        if not self._factory.settings_for(name).durable:
            events.log_in_memory(name)
        try:
            queue = self._factory.queue(name, journal)
        except Exception:
            self._storage.committer.discard(journal)
            self._storage.log.unpin(journal)
            journal.close()
            raise
        self._registry.add(queue)
        if journal.lost_items:
            log.error(
                "large items lost with the machine: the log had them, but their bytes were not on the disk",
                queue=shown(name),
                items=journal.lost_items,
            )

    def retry(self) -> None:
        """Try directories that could not be opened, until the time of a slice is over: the disk may have
        space again, or a directory have been repaired or moved away."""
        budget, errors = self._environment.budget, self._out_of_service.errors
        budget.begin(SLICE_MS)
        for name in self._out_of_service.names_to_retry():
            # those that are not tried now come first the next time
            errors[name] = errors.pop(name)
            self._retry(name)
            if budget.is_spent():
                break

    def _retry(self, name: bytes) -> None:
        try:
            self._open(name)
        except Exception as error:  # logged at the start
            self._out_of_service.errors[name] = _failure(error)
        else:
            del self._out_of_service.errors[name]
            self._storage.log.unpin(name)
            events.log_in_service(name)

    def delete_from_log(self, name: bytes) -> bool:
        """Forget what the log has of a queue that is out of service because its directory was moved away.
        Returns whether it is such a queue."""
        if name not in self._out_of_service.errors or self._storage.directories.path_of(name).exists():
            return False
        del self._out_of_service.errors[name]
        self._lives.pop(name, None)
        self._registry.remove(name)
        self._storage.log.unpin(name)
        log.warning("queue without a directory deleted from the log", queue=shown(name))
        return True
