"""The reply to what ends a delivery, and what is done if the server could not take it."""

import asyncio
import random
from collections.abc import Awaitable, Callable

from structlog.typing import FilteringBoundLogger

from darner.client.errors import ClientError, ServerFailedError
from darner.work.backoff import pause_s

# The pause before the server is told again that a delivery has ended, if it could not take note of it.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0


async def confirm(
    reply: Awaitable[None], send: Callable[[], Awaitable[None]], log: Callable[[], FilteringBoundLogger]
) -> bool:
    """Wait for the reply to what was sent; `send` it again if the server could not take it.

    Return whether the delivery has ended; if not, its item went back meanwhile. `log` is called only if there
    is something to log: this is done for each item.
    """
    failures = 0
    while True:
        try:
            await reply
        except ServerFailedError as error:
            log().warning("the server could not take the answer", error=str(error))
            await asyncio.sleep(pause_s(failures, FIRST_PAUSE_S, LONGEST_PAUSE_S, random.random))
            failures += 1
            reply = send()
        except ClientError as error:
            # it was held too long, or the connection was lost, or somebody deleted the queue
            log().warning("the item went back: it will be done again", error=str(error))
            return False
        else:
            return True
