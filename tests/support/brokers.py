"""A broker with its data directory: its clock is a number, and its threads run when a test says so."""

from doubles import Offload, let_go, record

from darner._records import CHUNK_BYTES
from darner.config.settings import NOTHING_CONFIGURED, QueueSettings
from darner.environment.environment import Environment
from darner.queues import (
    broker,
    data_directory,
    deletion,
    events,
    names,
    opening,
    registry,
    routes,
    space,
    syncing,
    transfers,
    upkeep,
)
from darner.queues.broker import Broker
from darner.queues.fanout import Fanout, parent_of

# the rooms of the broker that log
LOGGING = (
    broker, data_directory, deletion, events, names, opening, registry, routes, space, syncing, transfers,
    upkeep,
)  # fmt: skip


def log_to(patch, logger):
    """Have all that a broker logs go to `logger`."""
    for module in LOGGING:
        patch.setattr(module, "log", logger)


class Data:
    """A data directory and its broker.

    With a `boot` it has a monotonic clock besides: `now` goes on evenly, and the wall clock is `ahead` of it.
    """

    def __init__(self, path, *, now=1000, ahead=0, boot=0, environment=None, **options):
        self.path = path
        self.now = now
        self.ahead = ahead
        # the number of the machine's start, and its time
        self.boot = boot
        self.booted = now - 60_000
        # what the environment has besides
        self.world = environment or {}
        self.options = options
        # by queue, its settings if they are not the defaults
        self.settings = {}
        self.open()

    def settings_for(self, name, configured=NOTHING_CONFIGURED):
        return self.settings.get(name) or self.settings.get(parent_of(name)) or QueueSettings()

    def open(self):
        self.threads = Offload()
        # timers: when they are due, and what they call
        self.timers = []
        world = self.world
        if self.boot:
            world = world | {"monotonic": lambda: self.now - self.booted, "boot": self.boot}
        environment = Environment(
            lambda: self.now + self.ahead, self.threads, call_later=self.call_later, **world
        )
        self.broker = Broker(self.path, environment, self.settings_for, **self.options)
        self.broker.open()

    def call_later(self, ms, work):
        self.timers.append((self.now + ms, work))

    def reconfigure(self, aliases=None):
        """Apply the current settings and these aliases; return the names of changed queues."""
        changed = []
        for _ in self.broker.reconfigure(self.settings_for, aliases or {}, changed):
            pass
        return changed

    def set_clock(self, ahead):
        """Set the wall clock ahead of `now` by so much, in ms."""
        self.ahead = ahead
        self.tick()

    def reboot(self, *, ahead=0):
        """Start the machine again between two processes, with the wall clock ahead by so much, in ms."""
        self.boot += 1
        self.booted, self.ahead = self.now, ahead

    def settle(self):
        """Run the tasks of all threads."""
        self.threads.run_all()

    def tick(self, times=1):
        """Tick as the server does, with the tasks and timers that follow."""
        for _ in range(times):
            self.broker.tick()
            self.settle()
            self.run_timers()

    def write_out_once(self):
        """Try once to write all staged changes to LevelDB."""
        for queue in self.broker.queues.values():
            self.broker.storage.committer.checkpoint(queue.journal)
        self.settle()

    def write_out(self):
        """Write all staged changes to LevelDB, and delete obsolete files."""
        self.tick(8)

    def run_timers(self):
        """Run all timers."""
        while self.timers:
            _, work = self.timers.pop(0)
            work()
            self.settle()

    def close(self):
        self.settle()
        self.broker.close()

    def restart(self):
        self.close()
        self.open()
        return self.broker

    def end(self):
        """End the process by a kill: the log has every change, LevelDB what it had."""
        for each in self.broker.journals():
            each.close()
        let_go(self.broker.storage.log)
        self.broker._lock.close()

    def kill(self):
        """End the process by a kill and begin the next one."""
        self.end()
        self.open()
        return self.broker

    def push(self, name, *datas, exptime=0):
        for data in datas:
            self.broker.queue(name).push(record(data), 7, exptime)

    def set_once(self, name, data, id, delay_ms=0):
        """Set an item with an id as the command `set` does; return the names of the queues that stored it."""
        fanout = Fanout(self.targets(name))
        return [queue.name for queue in fanout.push(record(data), 0, 0, delay_ms, id)]

    def set(self, name, data, delay_ms=0):
        """Set an item as the command `set` does."""
        sink = self.broker.routes.sink(name)
        if isinstance(sink, Fanout):
            sink.push(record(data), 0, 0, delay_ms)
        elif delay_ms:
            sink.push_delayed(record(data), 0, 0, delay_ms)
        else:
            sink.push(record(data), 0, 0)

    def targets(self, name):
        """Return the queues that a `set` to this name goes to."""
        sink = self.broker.routes.sink(name)
        return sink.queues if isinstance(sink, Fanout) else (sink,)

    def upload(self, name, content, *, sync=False, id=None):
        """Set a large item as the command `set` does; return the errors that the upload was told."""
        upload = self.broker.routes.upload(name, len(content), id)
        self.write(upload, content)
        return self.finish(upload, sync=sync)

    def write(self, upload, content):
        for at in range(0, len(content), CHUNK_BYTES):
            upload.write(content[at : at + CHUNK_BYTES])

    def finish(self, upload, *, sync=False):
        told = []
        upload.finish(0, 0, told.append, sync=sync)
        self.settle()
        return told

    def read(self, name):
        """Take the next item of a queue and return its data; None if there is none."""
        queue = self.broker.queue(name)
        item = queue.pop()
        if item is None or item.data is not None:
            return item and item.data
        reader = queue.open_blob(item)
        content = b""
        while (data := reader.read(lambda: None)) != b"":
            content += data or b""
            self.settle()
        reader.close()
        return content

    def read_all(self, name):
        found = []
        while (content := self.read(name)) is not None:
            found.append(content)
        return found

    def blobs(self):
        """Return the directories of the files of large items, once obsolete files are deleted."""
        self.write_out()
        return sorted(str(file.relative_to(self.path).parent.parent) for file in self.path.glob("*/blobs/*"))

    def directories(self):
        return sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))
