"""What the queues need of the world around them: clocks, threads, timers and the disk's free space.

Nothing here reads a clock or starts a thread by itself: the server hands all of it in, and so do tests.
"""

from collections.abc import Callable

from darner.environment.budget import Budget
from darner.environment.offload import Offload
from darner.environment.timeline import Clock


class Environment:
    """The clocks, threads, timers and disk of one process. Its attributes are set once."""

    __slots__ = (
        "boot", "budget", "call_later", "clock", "defer", "free_bytes", "monotonic", "offload",
        "reserve_bytes", "stopwatch_ns",
    )  # fmt: skip

    def __init__(
        self,
        clock: Clock,
        offload: Offload,
        *,
        defer: Offload | None = None,
        monotonic: Clock | None = None,
        boot: int = 0,
        call_later: Callable[[int, Callable[[], None]], None] = lambda *_: None,
        free_bytes: Callable[[], int] = lambda: 0,
        reserve_bytes: Callable[[], int] = lambda: 0,
        budget: Budget | None = None,
        stopwatch_ns: Callable[[], int] = lambda: 0,
    ) -> None:
        # the wall clock, in ms of the Unix epoch
        self.clock = clock
        # for work that a client waits for, and for all other work
        self.offload = offload
        self.defer = defer or offload
        # ms since the machine's start, and another number below 2 ** 60 for each start; without a monotonic
        # clock all goes by the wall clock, which then must not be set
        self.monotonic = monotonic
        self.boot = boot
        # has a function called on the event loop in so many ms
        self.call_later = call_later
        # how much is free on the disk of the data directory, and how much of it is to be held in reserve for
        # when the disk is full; OSError if the system does not tell
        self.free_bytes = free_bytes
        self.reserve_bytes = reserve_bytes
        # tells how long something takes, in ns
        self.stopwatch_ns = stopwatch_ns
        # the time that one piece of work may take before others have their turn
        self.budget = budget or Budget(monotonic or clock)
