"""A broker to be driven by hand: its clock is a number, and its threads run when they are told to."""

from darner._proto import CHUNK_BYTES
from darner.broker import Broker
from darner.config import QueueSettings
from darner.fanout import parent_of


class Data:
    """A data directory and the broker that has it."""

    def __init__(self, path, **options):
        self.path = path
        self.now = 1000
        self.options = options
        # what is set for each queue that is not as by default
        self.settings = {}
        self.open()

    def settings_for(self, name):
        return self.settings.get(name) or self.settings.get(parent_of(name)) or QueueSettings()

    def open(self):
        self.tasks = []
        self.broker = Broker(
            self.path,
            lambda: self.now,
            lambda *task: self.tasks.append(task),
            settings_for=self.settings_for,
            **self.options,
        )
        self.broker.open()

    def settle(self):
        """Commit, and let the threads run."""
        self.broker.committer.commit()
        while self.tasks:
            work, done = self.tasks.pop(0)
            try:
                work()
            except Exception as error:
                done(error)
            else:
                done(None)
            self.broker.committer.commit()

    def restart(self):
        self.settle()
        self.broker.close()
        self.open()
        return self.broker

    def push(self, name, *datas):
        for data in datas:
            self.broker.queue(name).push(data, 0, 0, sync=False)

    def set(self, name, data, *, sync=False):
        """As a `set` does it."""
        self.broker.sink(name).push(data, 0, 0, sync=sync)

    def upload(self, name, content, *, sync=False):
        """As a `set` of a large item does it; returns what it came to."""
        upload = self.broker.upload(name, len(content))
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
        self.settle()
        self.broker.tidy()
        self.settle()
        return sorted(str(file.relative_to(self.path).parent.parent) for file in self.path.glob("*/blobs/*"))

    def directories(self):
        return sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))
