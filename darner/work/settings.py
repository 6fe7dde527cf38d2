"""What a worker is told: where its items come from, what is done with them, and how many at a time."""

import math
import ssl
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, get_args

from darner.client import codecs, protocol, url
from darner.client.codecs import Codec
from darner.work.errors import WorkerError
from darner.work.loading import is_async, load

Pool = Literal["threads", "processes", "asyncio"]
POOLS: tuple[str, ...] = get_args(Pool)


@dataclass(frozen=True)
class Settings:
    """The settings of one worker. Times are in seconds.

    servers: as for `darner.client.Client`: a URL, or a list of them for a fleet.
    function: is called with an `Item`; or its name, `module:function`. With processes the name, or a function
        that can be imported by its name.
    queues: where items are taken from. An earlier one goes first, as long as it has any.
    concurrency: how many items are worked on at a time.
    pool: what runs them: threads; processes, each with one item at a time; or asyncio, for async functions.
    tls: what TLS connections (`darners://`) are made with; None is what Python does by default.
    codec: turns the bytes of an item into `Item.value`, as for the client; None leaves them as they are.
    grace: how long the end waits for what is in progress. What is not finished then goes back.
    first_pause, longest_pause: the pause before an item that failed is tried again; it doubles each time.
    max_jobs: after how many items a process ends. With processes, another takes its place.
    set_up: is called first in each of the processes, to set up its log, say. It can be imported by its name.
    metrics_port: where Prometheus reads the figures; 0 lets the system choose, None is nowhere.
    """

    servers: str | Sequence[str]
    function: str | Callable[[Any], object]
    _: KW_ONLY
    queues: Sequence[str]
    concurrency: int = 8
    pool: Pool = "threads"
    tls: ssl.SSLContext | None = None
    codec: str | Codec | None = None
    grace: float = 30.0
    first_pause: float = 1.0
    longest_pause: float = 600.0
    max_jobs: int | None = None
    set_up: Callable[[], object] | None = None
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        """Raise WorkerError or BadRequestError if a setting cannot be."""
        url.parse_all(self.servers)
        protocol.source_keys(self.queues)
        codecs.find(self.codec)
        if self.pool not in POOLS:
            raise WorkerError(f"pool is {self.pool!r}, and must be {', '.join(POOLS[:-1])} or {POOLS[-1]}")
        for what, least in (("concurrency", self.concurrency), ("max_jobs", self.max_jobs)):
            if least is not None and least < 1:
                raise WorkerError(f"{what} is {least}, and must be a whole number from 1")
        for what, seconds in (
            ("grace", self.grace), ("first_pause", self.first_pause), ("longest_pause", self.longest_pause)
        ):  # fmt: skip
            if not (math.isfinite(seconds) and seconds >= 0):
                raise WorkerError(f"{what} is {seconds}, and must be a number of seconds from 0")

    def load_function(self) -> Callable[[Any], object]:
        """Return the function. Raises WorkerError if there is none, or none that this pool can run."""
        function = load(self.function) if isinstance(self.function, str) else self.function
        if is_async(function) and self.pool != "asyncio":
            raise WorkerError(f"{self.function} is async: it needs the pool asyncio, not {self.pool}")
        if not is_async(function) and self.pool == "asyncio":
            raise WorkerError(f"{self.function} is not async, as the pool asyncio needs it: use threads")
        return function
