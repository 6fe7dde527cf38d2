"""A broker to be driven by hand: its clock is a number, and its threads run when they are told to."""

from doubles import Offload, let_go, record

from darner._records import CHUNK_BYTES
from darner.config.settings import QueueSettings
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
    """A data directory and the broker that has it.

    With a `boot` it has a monotonic clock besides: `now` goes on evenly, and the wall clock is `ahead` of it.
    """

    def __init__(self, path, *, now=1000, ahead=0, boot=0, environment=None, **options):
        self.path = path
        self.now = now
        self.ahead = ahead
        # the number of the machine's start, and when that was
        self.boot = boot
        self.booted = now - 60_000
        # what the environment has besides
        self.world = environment or {}
        self.options = options
        # what is set for each queue that is not as by default
        self.settings = {}
        self.open()

    def settings_for(self, name):
        return self.settings.get(name) or self.settings.get(parent_of(name)) or QueueSettings()

    def open(self):
        self.threads = Offload()
        # what is to be called, and when
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
        """Have the settings that are set by now, and these aliases; returns what changed."""
        changed = []
        for _ in self.broker.reconfigure(self.settings_for, aliases or {}, changed):
            pass
        return changed

    def set_clock(self, ahead):
        """Set the wall clock, so that it is so far ahead of `now`."""
        self.ahead = ahead
        self.tick()

    def reboot(self, *, ahead=0):
        """The machine starts anew, with the wall clock so far ahead, between one process and the next."""
        self.boot += 1
        self.booted, self.ahead = self.now, ahead

    def settle(self):
        """Let the threads run."""
        self.threads.run_all()

    def tick(self, times=1):
        """As the server does it, and what comes of that."""
        for _ in range(times):
            self.broker.tick()
            self.settle()
            self.run_timers()

    def write_out_once(self):
        """Have LevelDB written, or try to."""
        for queue in self.broker.queues.values():
            self.broker.storage.committer.checkpoint(queue.journal)
        self.settle()

    def write_out(self):
        """Have LevelDB written, and files deleted that are not needed any more."""
        self.tick(8)

    def run_timers(self):
        """Do what is to be done soon."""
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
        """The end of the process: the log has everything, LevelDB what it had."""
        for each in self.broker.journals():
            each.close()
        let_go(self.broker.storage.log)
        self.broker._lock.close()

    def kill(self):
        """The end of the process, and the next one."""
        self.end()
        self.open()
        return self.broker

    def push(self, name, *datas, exptime=0):
        for data in datas:
            self.broker.queue(name).push(record(data), 7, exptime)

    def set(self, name, data, delay_ms=0):
        """As a `set` does it."""
        sink = self.broker.routes.sink(name)
        if isinstance(sink, Fanout):
            sink.push(record(data), 0, 0, delay_ms)
        elif delay_ms:
            sink.push_delayed(record(data), 0, 0, delay_ms)
        else:
            sink.push(record(data), 0, 0)

    def targets(self, name):
        """The queues a `set` goes to."""
        sink = self.broker.routes.sink(name)
        return sink.queues if isinstance(sink, Fanout) else (sink,)

    def upload(self, name, content, *, sync=False):
        """As a `set` of a large item does it; returns what it came to."""
        upload = self.broker.routes.upload(name, len(content))
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
        """Take the next item of a queue, and return all its bytes; None if there is none."""
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
        """The files of large items there are, once all is tidied up."""
        self.write_out()
        return sorted(str(file.relative_to(self.path).parent.parent) for file in self.path.glob("*/blobs/*"))

    def directories(self):
        return sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))
