"""Requests to JetStream's API: streams, consumers, messages by their sequence."""

import asyncio
from typing import Any

import msgspec

from darner.errors import UnavailableError
from darner.jetstream.link import Link, status_of

# How long, in seconds, an answer may take, and how long it is asked for again if none comes: a new leader is
# elected in 5 to 9 s after one was killed.
TRY_S = 3.0
GIVE_UP_S = 20.0
# How long, in seconds, between two tries if the answer is that there is no leader.
PAUSE_S = 0.25

NO_RESPONDERS = 503
# Codes of JetStream's errors, from its errors.json.
UNAVAILABLE = frozenset((10008, 10009, 10023))
STREAM_IN_USE = 10058
NO_STREAM = 10059
NO_CONSUMER = 10014
NO_MESSAGE = 10037
FULL = frozenset((10077,))
# The stream cannot be changed in this way.
WRONG_CHANGE = 10052
# The stream is closed for a moment, in which it gets other limits.
CLOSED = 10054
TOO_MANY_BATCHES = 10210
BATCH_INCOMPLETE = 10176
BATCH_HAS_DUPLICATE = 10201
# The same id is on its way in another message.
ID_IN_PROCESS = 10158


class ApiError(UnavailableError):
    """The cluster refuses a request; `code` says why."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(f"the cluster refuses: {description} ({code})")
        self.code = code


def no_answer() -> UnavailableError:
    """Return the error of a request that nobody answers."""
    return UnavailableError(
        "the cluster does not answer: a majority of its nodes may be down, or have no JetStream"
    )


async def call(
    link: Link, name: str, body: dict[str, Any] | None = None, deadline: float | None = None
) -> dict[str, Any]:
    """Return the answer of the API `name`. Raises ApiError if it is an error, UnavailableError if none comes
    until `deadline`, by the loop's clock, or in GIVE_UP_S."""
    loop = asyncio.get_running_loop()
    end = loop.time() + GIVE_UP_S if deadline is None else deadline
    payload = msgspec.json.encode(body) if body is not None else b""
    while (left_s := end - loop.time()) > 0:
        message = await link.ask(f"$JS.API.{name}", payload, min(TRY_S, left_s))
        if message is None:
            continue
        if status_of(message) != NO_RESPONDERS:
            answer: dict[str, Any] = msgspec.json.decode(message.data)
            error = answer.get("error")
            if error is None:
                return answer
            if error.get("err_code") not in UNAVAILABLE:
                raise ApiError(error.get("err_code", 0), error.get("description", ""))
        await asyncio.sleep(PAUSE_S)
    raise no_answer()


async def call_all(
    link: Link,
    name: str,
    key: str,
    body: dict[str, Any] | None = None,
    deadline: float | None = None,
) -> list[str]:
    """Return what the API `name` has under `key`, all its pages together. Raises as `call`."""
    found: list[str] = []
    while True:
        answer = await call(link, name, {**(body or {}), "offset": len(found)}, deadline)
        page = answer.get(key) or []
        found += page
        if not page or len(found) >= answer["total"]:
            return found
