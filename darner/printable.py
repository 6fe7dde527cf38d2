"""Names and texts that strangers choose, as people are shown them: in the log, on a terminal, in statistics.

Everything that shows the name of a queue or a text from outside uses this, so that no character of it has any
effect but being seen.
"""

import re

# What is not shown as it is in a name: bytes outside printable ASCII, and a percent sign that would look like
# the start of an encoded byte. So no two names look alike.
_ENCODED = re.compile(rb"[^!-~]|%(?=[0-9A-Fa-f]{2})")


def shown(name: bytes) -> str:
    """Return the name of a queue as operators see it: bytes outside printable ASCII are percent-encoded, and
    so is a `%` that two hexadecimal digits follow. Decoding gives the name back."""
    return _ENCODED.sub(lambda found: b"%%%02X" % found[0][0], name).decode()


def printable(text: str) -> str:
    """Return a text with every character that is not printable escaped as in Python: control characters, line
    ends, marks that turn the direction of a line, unusual spaces, and bytes that were no UTF-8."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte, as os.fsdecode has it
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()
