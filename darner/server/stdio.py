"""The standard files: input, output and error."""

import io
import os
import sys

STDERR = 2


def open_all() -> None:
    """Open /dev/null in the place of each standard file that is closed: else a socket or a file of ours would
    get its number. What cannot be encoded is written with backslashes. To be called before any other file is
    opened."""
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # which gets the lowest number
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))
    for file in (sys.stdout, sys.stderr):
        if isinstance(file, io.TextIOWrapper):
            file.reconfigure(errors="backslashreplace")
