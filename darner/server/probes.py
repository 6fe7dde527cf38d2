"""What a supervisor or a load balancer asks over HTTP: does the server live, and does it take sets."""

from collections.abc import Callable
from concurrent.futures import Future
from wsgiref.types import WSGIEnvironment

from darner.server.pages import Answer, plain
from darner.wire.clients import Clients

# How many seconds the event loop has to answer a probe: a turn takes some milliseconds.
LOOP_S = 2.0


class Probes:
    """The pages /healthz and /readyz.

    `refusal`: why the server as a whole takes no sets yet, or no more; None while it is up.
    """

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self.refusal: str | None = "the server is starting"

    def healthz(self, _: WSGIEnvironment) -> Answer:
        """Say whether the event loop answers. It does not while the server opens its queues at a start."""
        return self._ask(list)

    def readyz(self, _: WSGIEnvironment) -> Answer:
        """Say whether sets are taken, and if not, why. A queue that is out of service does not count: the
        others are served."""
        return self._ask(lambda: self._clients.broker.refusals if self.refusal is None else [self.refusal])

    def _ask(self, look: Callable[[], list[str]]) -> Answer:
        """Answer by what `look` finds wrong, on the event loop."""
        found: Future[list[str]] = Future()
        self._clients.loop.call_soon_threadsafe(lambda: found.set_result(look()))
        try:
            wrong = found.result(LOOP_S)
        except TimeoutError:
            wrong = [f"the event loop has not answered for {LOOP_S:g} s"]
        never_kept = ("Cache-Control", "no-store")
        if wrong:
            return plain("503 Service Unavailable", "; ".join(wrong), never_kept)
        return plain("200 OK", "ok", never_kept)
