"""Queues as they are declared: made on the server, with the settings that their arguments ask for."""

from collections.abc import Mapping, Sequence
from typing import Any

from kombu.log import get_logger

from darner.client import protocol
from darner.kombu import names, settings
from darner.kombu.server import Server

logger = get_logger(__name__)


class Declared:
    """The queues that one connection has declared, and what it knows of them."""

    def __init__(self, server: Server, *, configures: bool) -> None:
        self._server = server
        # whether the server lets us set anything
        self._configures = configures
        self._has_warned = False
        self._settings: dict[str, dict[str, str]] = {}
        self._max_priority: dict[str, int] = {}
        self._temporary: set[str] = set()

    def __contains__(self, queue: str) -> bool:
        return queue in self._settings

    def declare(self, queue: str, arguments: Mapping[str, Any], *, is_temporary: bool) -> None:
        """Make a queue. One that is temporary ends by itself some time after its last reader. Raises as
        `Server.ask`."""
        self._max_priority[queue] = min(int(arguments.get("x-max-priority") or 0), names.MOST_URGENT)
        self._settings[queue] = settings.of_queue(arguments, is_temporary=is_temporary)
        parts = [names.priority_queue(queue, priority) for priority in self.priorities(queue)]
        self._configure(parts, self._settings[queue])
        if is_temporary and self._configure([names.inbox(queue)], _inbox_settings(self._settings[queue])):
            self._temporary.add(queue)

    def declare_exchange(self, exchange: str) -> None:
        """Make a fanout exchange. It keeps nothing for nobody. Raises as `Server.ask`."""
        self._configure([names.fanout(exchange)], {"fanout_only": "true"})

    def declare_fanout(self, exchange: str, queue: str) -> None:
        """Have a fanout exchange give its messages to a queue, from now on. Raises as `Server.ask`."""
        self.declare_exchange(exchange)
        self._declare_child(names.fanout_child(exchange, queue), queue)

    def declare_inbox(self, queue: str) -> None:
        """Have direct and topic exchanges be able to give messages to a temporary queue. Raises as
        `Server.ask`."""
        for priority in self.priorities(queue):
            self._configure([names.inbox(queue, priority)], _inbox_settings(self._settings[queue]))
            self._declare_child(names.inbox_child(queue, priority), queue)

    def _declare_child(self, child: bytes, queue: str) -> None:
        self._configure([child], self._settings.get(queue, {}))
        if not self._server.stats([child])[0]:
            # a fetch makes it
            reply = self._server.ask([protocol.get_line([child], b"/open")])[0]
            for value in reply.values:
                self._server.ask([protocol.abort_line(child, value.token)])

    def forget(self, queue: str) -> None:
        """Forget a queue that was deleted."""
        self._settings.pop(queue, None)
        self._max_priority.pop(queue, None)
        self._temporary.discard(queue)

    def ends_by_itself(self, queue: str) -> bool:
        """Return whether a queue was declared as temporary, and is on the server."""
        return queue in self._temporary

    def priority(self, queue: str, priority: int) -> int:
        """Return the priority that a message has in a queue: all have 0 if it has no priorities."""
        return max(0, min(priority, self._max_priority.get(queue, 0)))

    def priorities(self, queue: str) -> range:
        """Return the priorities of a queue as declared here, the most urgent first."""
        return range(self._max_priority.get(queue, 0), -1, -1)

    def _configure(self, queues: Sequence[bytes], values: Mapping[str, str]) -> bool:
        """Set what the server lets us set; return whether that was all."""
        if not self._configures:
            return False
        # each by itself: what the operator has decided otherwise leaves the others in force
        requests = [
            settings.configure_line(queue, {name: values[name]}) for queue in queues for name in values
        ]
        replies = self._server.ask(requests) if requests else []
        errors = [error for reply in replies if (error := protocol.error_of(reply.line)) is not None]
        if any(reply.line == b"ERROR" for reply in replies):
            self._configures = False
        if errors and not self._has_warned:
            self._has_warned = True
            logger.warning("queues keep the settings of the server's operator: %s", errors[0])
        return not errors


def _inbox_settings(of_queue: Mapping[str, str]) -> dict[str, str]:
    return {"fanout_only": "true", "max_queue_age": of_queue["max_queue_age"]}
