"""Moving items from one queue of a server to another: each once, whatever ends in between.

An item is set on the target with an id that is made of what it is, and closed in the source once the server
has it. Whoever does that again, after a lost reply, a kill of the tool or of the server, sets it with the
same id, and the target knows it for as long as its `dedup_window`.
"""

import hashlib
import time
from collections.abc import Sequence

from darner.client import protocol
from darner.client.client import Client
from darner.client.errors import BadRequestError, ClientError, ConnectionLostError
from darner.client.servers import Servers
from darner.client.storing import put_on
from darner.errors import ToolError
from darner.printable import shown
from darner.tools.emptying import Emptying
from darner.tools.holding import WINDOW
from darner.tools.looking import Waiting
from darner.tools.queue_settings import seconds, settings_in_force
from darner.tools.server_settings import can_sync
from darner.tools.sets import set_request


def check_names(source: str, target: str) -> None:
    """Raise BadRequestError if items cannot be moved from `source` to `target`, whatever the server."""
    if "/cursor=" in source:
        raise BadRequestError("a cursor only reads: what it reads cannot be moved")
    from_key, to_key = protocol.queue_key(source), protocol.queue_key(target)
    if from_key == to_key:
        raise BadRequestError("a queue cannot be moved onto itself")
    if from_key.startswith(to_key + b"+") and b"+" not in to_key:
        raise BadRequestError(
            f"what is set on {shown(to_key)} goes to its child {shown(from_key)}, too: items would come back"
        )


def move_id(source: bytes, created_ms: int, item: Waiting) -> bytes:
    """Return the id with which an item is set on the target.

    The data belong to it, and when the queue was made: ids of items begin anew in a queue that was deleted.
    """
    what = b"%b %d %d %d " % (source, created_ms, item.id, item.flags) + item.data
    return b"darner-move-%d-%b" % (item.id, hashlib.blake2b(what, digest_size=16).hexdigest().encode())


class Move:
    """A move at one server, of what waits when this is made: `emptying.run` does it.

    `warnings`: what might go wrong.
    """

    def __init__(self, client: Client, source: str, target: str, most: int | None = None) -> None:
        """`client` is of one server. `most` is how many items to move; None is all.

        BadRequestError if it makes no sense, ToolError if the server stores nothing now.
        """
        check_names(source, target)
        servers, pool = client.servers, client.servers.only
        if pool is None:
            raise BadRequestError("items are moved within one server: name one")
        self._pool = pool
        self._source = protocol.queue_key(source)
        self._target = protocol.queue_key(target)
        self._timeout = servers.timeout
        self._check_status(servers)
        self.emptying = Emptying(servers, pool, self._source, self, most)
        self.warnings: list[str] = []
        self._sync = can_sync(servers, pool)
        # how long the target remembers ids, in seconds; None is not known
        self._remembers_s: float | None = None
        self._heed_settings()
        # Without that only one item at a time can be in doubt.
        self.window = 1 if self._remembers_s == 0 else WINDOW
        # items of which it is not known whether they were set: when that began
        self._unsure: dict[int, float] = {}

    def _check_status(self, servers: Servers) -> None:
        reply = servers.ask_again(self._pool, protocol.status_line(None))
        if reply.line in protocol.STATUS_REPLIES and reply.line != b"UP":
            status = reply.line.decode().lower()
            raise ToolError(f"{self._pool.address} is {status}, and stores nothing: see darner status")

    def _heed_settings(self) -> None:
        target = shown(self._target)
        settings = settings_in_force(self._pool, self._target, self._timeout)
        if settings is None:
            self.warnings.append(
                f"only an admin may see whether {target} remembers what was set (dedup_window): if not, an"
                " interrupted move may put an item twice"
            )
            return
        self._remembers_s = seconds(settings.get("dedup_window"))
        if self._remembers_s == 0:
            self.warnings.append(
                f"{target} does not remember what was set (dedup_window = 0): items are moved one by one, and"
                " one may be there twice if the move is interrupted"
            )
        if settings.get("durable") == "false":
            self.warnings.append(f"{target} is in memory only (durable = false): a restart empties it")

    @property
    def unsure(self) -> int:
        """Of how many items it is unknown whether they were set."""
        return len(self._unsure)

    def keep(self, items: Sequence[Waiting]) -> list[ClientError | None]:
        """Set items on the target; ToolError if one may have been set, and is forgotten by now."""
        begun = time.monotonic()
        since = min((self._unsure.get(item.id, begun) for item in items), default=begun)
        if self._remembers_s is not None and begun - since > self._remembers_s:
            raise self._in_doubt()
        requests = [
            set_request(
                self._target,
                item.data,
                item.flags,
                item.left_s if item.left_s >= 0 else None,
                move_id(self._source, self.emptying.created_ms, item),
                # or a power cut could leave the removal from the source, and not this
                sync=self._sync,
            )
            for item in items
        ]
        outcomes = put_on(self._pool, requests, self._timeout)
        for item, outcome in zip(items, outcomes, strict=True):
            if outcome is None:
                self._unsure.pop(item.id, None)
            elif isinstance(outcome, ConnectionLostError):
                self._unsure.setdefault(item.id, begun)
        return outcomes

    def lost(self, error: ClientError) -> None:
        """Raise ToolError if an item may have been set, and the target would not know it."""
        if self._unsure and self._remembers_s == 0:
            raise self._in_doubt() from error

    def _in_doubt(self) -> ToolError:
        ids = ", ".join(map(str, sorted(self._unsure)))
        return ToolError(
            f"the connection was lost while items were set, and {shown(self._target)} does not remember them:"
            f" of {shown(self._source)}, {'item' if len(self._unsure) == 1 else 'items'} {ids} may be in both"
        )
