"""Commands that take more than one turn of their connection, and so let others have theirs in between."""

import functools
from collections.abc import Callable, Iterator

from darner._proto import Request
from darner.errors import JournalError, NotReadyError
from darner.wire.connection import Connection
from darner.wire.replies import server_error


def run_in_slices(connection: Connection, steps: Iterator[bool]) -> None:
    """Take these steps in as many turns as they need. A step that gives True ends the turn."""
    # not a function that refers to itself: what the collector alone frees costs others their time
    for must_wait in steps:
        if must_wait or connection.should_yield:
            connection.continue_later(functools.partial(run_in_slices, connection, steps))
            return


def reply_in_pieces(connection: Connection, request: Request, pieces: Iterator[bytes]) -> None:
    """Reply with these pieces, which are made as the client reads them."""
    run_in_slices(connection, _replied(connection, request, pieces))


def _replied(connection: Connection, request: Request, pieces: Iterator[bytes]) -> Iterator[bool]:
    for piece in pieces:
        connection.reply(request, piece)
        yield False


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
