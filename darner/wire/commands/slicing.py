"""Commands that take more than one turn of their connection, and so let others have theirs in between."""

import functools
from collections.abc import Callable, Iterator

from darner._proto import Request
from darner.errors import JournalError, NotReadyError
from darner.queues.pending import Pending
from darner.wire.connection import Connection
from darner.wire.replies import server_error


def is_behind_replies(connection: Connection, again: Callable[[], None]) -> bool:
    """Return whether replies to earlier requests wait for something, such as a set that is not stored yet. If
    so, call `again` when they are there: what they promise is done by then."""
    if not connection.sender.pending_writes:
        return False
    connection.continue_later(again)
    return True


def run_in_slices(connection: Connection, steps: Iterator[Pending | None]) -> None:
    """Take these steps in as many turns as they need. A step may give what the next one has to wait for."""
    if is_behind_replies(connection, functools.partial(run_in_slices, connection, steps)):
        return
    # not a function that refers to itself: what the collector alone frees costs others their time
    for pending in steps:
        if pending is not None:
            connection.sender.wait_for(pending)
        if pending is not None or connection.should_yield:
            connection.continue_later(functools.partial(run_in_slices, connection, steps))
            return


def reply_in_pieces(connection: Connection, request: Request, pieces: Iterator[bytes | Pending]) -> None:
    """Reply with these pieces, which are made as the client reads them. What is no piece is waited for."""
    run_in_slices(connection, _replied(connection, request, pieces))


def _replied(
    connection: Connection, request: Request, pieces: Iterator[bytes | Pending]
) -> Iterator[Pending | None]:
    for piece in pieces:
        if isinstance(piece, bytes):
            connection.reply(request, piece)
            yield None
        else:
            yield piece


def retry(connection: Connection, error: NotReadyError, again: Callable[[], None]) -> None:
    """Call `again` once enough of what is staged in the journal, which `error` names, is written."""
    connection.sender.wait_for(error.journal)
    connection.continue_later(again)


def retry_or_refuse(connection: Connection, error: JournalError, again: Callable[[], None]) -> None:
    """Call `again` later if that will soon be of use, or else reply with the error."""
    if isinstance(error, NotReadyError):
        retry(connection, error, again)
    else:
        connection.sender.replies.append(server_error(error))
