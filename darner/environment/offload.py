"""How work is handed to another thread, and what comes of it handed back."""

from collections.abc import Callable

# Called with a piece of work and with what is told how it ended: has the work done in a thread, and then the
# outcome told on the event loop: the exception that the work raised, or None.
Offload = Callable[[Callable[[], None], Callable[[Exception | None], None]], None]


def at_once(work: Callable[[], None], done: Callable[[Exception | None], None]) -> None:
    """Do `work` on the calling thread: an `Offload` for when there is no other thread, or nobody who
    waits."""
    try:
        work()
    except Exception as error:  # `done` is told of it
        done(error)
    else:
        done(None)
