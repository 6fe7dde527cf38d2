"""The worker: it takes items off queues and has a function do what they ask for.

`python -m darner.work module:function --queue work` runs one; `Worker` is the same from a program.
It stands on `darner.client`, and knows the server by its protocol alone. The log is set up by who starts it.
"""

from darner.client.item import Item
from darner.work.errors import WorkerError
from darner.work.jobs import Retry
from darner.work.worker import Worker

__all__ = ["Item", "Retry", "Worker", "WorkerError"]
