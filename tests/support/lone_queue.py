"""A queue without a broker: its clock is a number, and its threads run when a test says so."""

from doubles import Offload, begin_upload, let_go, record

from darner.config.settings import QueueSettings
from darner.environment.environment import Environment
from darner.environment.timeline import Timeline
from darner.errors import JournalError
from darner.journal import leveldb
from darner.journal.commit import Committer
from darner.journal.recovery import open_journal
from darner.journal.resting import resting_state
from darner.journal.wal import Log
from darner.queues.queue import Queue

NOW = 1_700_000_000_000


class LoneQueue:
    """A queue with its settings, its clock, its journal and the log."""

    def __init__(self, path, settings=None):
        self.path = path
        self.now = NOW
        self.settings = settings or QueueSettings()
        # the items moved, each with its target; and how many more the targets accept, None for all
        self.moved = []
        self.moves_left = None
        path.mkdir()
        self.open()

    def open(self):
        self.threads = Offload()
        self.log = Log(self.path / ".log", self.threads)
        lives, damage = self.log.recover()
        assert not damage
        self.committer = Committer(self.log, Environment(lambda: self.now, self.threads))
        self.journal = open_journal(
            b"work", self.path / "work", self.committer, self.log, self.now, lives.get(b"work", ())
        )
        self.log.begin()
        self.queue = Queue(b"work", self.journal, Timeline(lambda: self.now), self.settings)
        self.queue.on_move = self.move

    def move(self, _, item, name):
        if self.moves_left == 0:
            raise JournalError("no room there")
        if self.moves_left is not None:
            self.moves_left -= 1
        self.moved.append((item.data, name))

    def set(self, **settings):
        self.settings = QueueSettings(**settings)
        self.queue.configure(self.settings)

    def commit(self):
        """Write the staged changes to LevelDB, with all tasks that follow from that."""
        self.committer.checkpoint(self.journal)
        self.threads.run_all()

    def tick(self):
        """Run some ticks of the server."""
        for _ in range(8):
            self.committer.tick()
            self.threads.run_all()

    def records(self, kind):
        """Return the keys of one kind in LevelDB."""
        self.commit()
        self.journal.close()
        with leveldb.DB(str(self.journal.path)) as db:
            return [key for key, _ in db if key.startswith(kind)]

    def close(self):
        self.threads.run_all()
        self.committer.close()
        self.journal.close(resting_state(self.journal))
        self.log.close()

    def restart(self):
        self.close()
        self.open()
        return self.queue

    def kill(self):
        """End the process by a kill and open the queue again: only the log has every change."""
        self.journal.close()
        self.threads.tasks.clear()
        let_go(self.log)
        self.open()
        return self.queue

    def push(self, *datas, exptime=0):
        for data in datas:
            self.queue.push(record(data), 0, exptime)

    def delay(self, delay_ms, *datas, exptime=0):
        for data in datas:
            self.queue.push_delayed(record(data), 7, exptime, delay_ms)

    def upload(self, *chunks, exptime=0, delay_ms=0):
        """Set a large item in these chunks; return the errors that the upload was told."""
        upload = begin_upload(self.queue, sum(map(len, chunks)))
        told = []
        for chunk in chunks:
            upload.write(chunk)
        upload.finish(7, exptime, told.append, sync=False, delay_ms=delay_ms)
        self.threads.run_all()
        return told

    def sweep(self):
        """Sweep as the broker does; return the number of slices."""
        slices = 0
        while not slices or self.queue.has_more_upkeep:
            self.queue.sweep()
            self.commit()
            slices += 1
        return slices

    def waiting(self):
        datas = [item.data for item in iter(self.queue.pop, None)]
        assert (self.queue.items, self.queue.waiting_bytes) == (0, 0)
        return datas
