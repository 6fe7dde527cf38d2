"""What the settings of a queue lack for a worker: said once, at its start."""

from collections.abc import Sequence

import structlog

from darner.client.errors import BadRequestError, ClientError
from darner.work.connection import Connection

log = structlog.get_logger()


async def advise(connection: Connection, queues: Sequence[str]) -> None:
    """Warn of queues on which an item that always fails would be tried for ever."""
    try:
        lines = await connection.dump_config()
    except BadRequestError as error:
        log.info("the settings of the queues were not checked", reason=str(error))
        return
    except ClientError:
        return  # what becomes of the connection is said elsewhere
    for queue, limit in zip(queues, max_attempts(lines), strict=False):
        if limit is None:
            log.warning(
                "an item that fails is tried for ever: set max_attempts, and a dead_letter_queue", queue=queue
            )


def max_attempts(lines: Sequence[bytes]) -> list[int | None]:
    """Return the setting of each queue, in the order of the lines that `dump_config` answers with."""
    limits = [line.partition(b"=")[2] for line in lines if line.startswith(b"  max_attempts=")]
    return [int(limit) if limit.isdigit() else None for limit in limits]
