"""What a command tells whoever ran it: lines of text, errors, and the exit status."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator

import click

from darner.errors import DarnerError
from darner.log.lines import set_up_log
from darner.printable import printable


def say(text: str, *, err: bool = False) -> None:
    """Write a line to standard output, or to standard error with `err`."""
    click.echo(printable(text), err=err)


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """Say an error of the body in one line on standard error, and exit with status 1."""
    try:
        yield
    except DarnerError as error:
        say(f"darner: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        where = "" if error.filename is None else f": {os.fsdecode(error.filename)}"
        say(f"darner: {error.strerror or error}{where}", err=True)
        sys.exit(1)


class ErrorCount(logging.Handler):
    """The number of errors that were logged since this was made."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.count = 0
        set_up_log()
        logging.getLogger().addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002
        """Count one more."""
        self.count += 1
