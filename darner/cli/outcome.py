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

# Exit statuses, besides 0 and those of click: 2 is a wrong command line.
FAILED = 1
INTERRUPTED = 130


def say(text: str, *, err: bool = False) -> None:
    """Write a line to standard output, or to standard error with `err`."""
    click.echo(printable(text), err=err)


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """Say an error of the body in one line on standard error, and exit with status 1.

    Ctrl-C exits with 130, and a standard output that nobody reads any more with 1; nothing is said then.
    """
    try:
        yield
        sys.stdout.flush()
    except DarnerError as error:
        say(f"darner: {error}", err=True)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except click.Abort:  # Ctrl-C or Ctrl-D at a question, whose line has no end yet
        say("", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # or Python would try to write the rest at its end, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except OSError as error:
        where = "" if error.filename is None else f": {os.fsdecode(error.filename)}"
        say(f"darner: {error.strerror or error}{where}", err=True)
        sys.exit(FAILED)


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
