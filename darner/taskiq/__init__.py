"""TaskIQ's tasks on darner: `from darner.taskiq import DarnerBroker`.

It stands on `darner.work`, whose connections a worker waits and holds on, and on the client.
"""

try:
    import taskiq  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "taskiq":
        raise
    raise ModuleNotFoundError(
        "darner.taskiq needs TaskIQ: pip install 'darner[taskiq]'", name="taskiq"
    ) from None

from darner.taskiq.broker import DarnerBroker

__all__ = ["DarnerBroker"]
