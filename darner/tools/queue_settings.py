"""The settings in force of a queue, as its server tells them to an admin."""

import time
from collections.abc import Mapping, Sequence

from darner.client import protocol
from darner.client.errors import BadRequestError
from darner.client.pool import Pool


def settings_in_force(pool: Pool, queue: bytes, timeout: float) -> Mapping[str, str] | None:
    """Return the settings of a queue by name, as text; None if this user may not ask for them.

    Of a queue that is not there they are those that it would have. `timeout` is in seconds; errors are those
    of a request to the server.
    """
    deadline = time.monotonic() + timeout
    connection = pool.take(deadline)
    lines: list[bytes] = []
    try:
        connection.send([protocol.config_line(queue)], deadline)
        while not lines or (lines[-1] != protocol.END and protocol.error_of(lines[-1]) is None):
            lines += [reply.line for reply in connection.read(1, deadline)]
    except BaseException:
        pool.discard(connection)
        raise
    pool.give(connection)
    error = protocol.error_of(lines[-1])
    if error is None:
        return _settings(lines)
    if isinstance(error, BadRequestError):  # not permitted, or a server that does not know it
        return None
    raise error


def _settings(lines: Sequence[bytes]) -> Mapping[str, str]:
    pairs = (line.decode(errors="replace").strip().partition("=") for line in lines if b"=" in line)
    return {name: text for name, _, text in pairs if not name.startswith("queue '")}


def seconds(text: str | None) -> float | None:
    """Return the seconds of a setting that is a time (`300000ms`); None if it is none, or not known."""
    number = (text or "").removesuffix("ms")
    return int(number) / 1000 if number.isdigit() else None
