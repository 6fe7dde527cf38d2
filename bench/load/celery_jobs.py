"""The Celery app that the benches and the crash tests run: `celery --app celery_jobs worker`.

Its settings are in $CELERY_SETTINGS, as JSON. Each task writes to the file $CELERY_LEDGER when it begins, and
when it ends if it took some time. The gate is a file beside that.
"""

import json
import os
import time
from pathlib import Path

from celery import Celery, Task  # type: ignore[import-untyped,unused-ignore]

_settings = json.loads(os.environ["CELERY_SETTINGS"])
_ledger = os.open(os.environ["CELERY_LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
_gate = Path(os.environ["CELERY_LEDGER"]).with_name("gate")

if _settings["broker_url"].startswith("darner"):
    import darner.kombu  # noqa: F401  # gives kombu the scheme

app = Celery("celery_jobs")
app.conf.update(_settings)


def note(word: str, number: int) -> None:
    """Write a line to the ledger: what happened to which task, when, in seconds, and in which process."""
    os.write(_ledger, b"%b %d %.6f %d\n" % (word.encode(), number, time.time(), os.getpid()))


@app.task(name="job")  # type: ignore[untyped-decorator,unused-ignore]
def job(number: int, seconds: float = 0.0) -> int:
    """Do nothing for so long, or, if that is below 0, until the gate is open; return the number."""
    note("began", number)
    while seconds < 0 and not _gate.exists():
        time.sleep(0.01)
    if seconds:
        time.sleep(max(seconds, 0))
        note("ended", number)
    return number


@app.task(name="total")  # type: ignore[untyped-decorator,unused-ignore]
def total(numbers: list[int]) -> int:
    """Add numbers: the body of a chord."""
    note("total", sum(numbers))
    return sum(numbers)


@app.task(name="retrying", bind=True)  # type: ignore[untyped-decorator,unused-ignore]
def retrying(task: Task, number: int, seconds: float) -> None:
    """Fail once, and be done when tried again after so many seconds."""
    note("began", number)
    if not task.request.retries:
        raise task.retry(countdown=seconds)
