"""How people are shown what a stranger has chosen, in the log, on a terminal and in statistics: in characters
that do nothing but be seen.

Everything that shows the name of a queue or a text from outside goes through here.
"""

import re

# Of a name, what is not shown as it is: what is no printable ASCII, and a percent sign that would read as if
# it were the beginning of such a byte. So no two names are shown alike.
_ENCODED = re.compile(rb"[^!-~]|%(?=[0-9A-Fa-f]{2})")


def shown(name: bytes) -> str:
    """Return the name of a queue as operators see it: bytes outside printable ASCII are percent-encoded, and
    so is a `%` that two hexadecimal digits follow. Decoded again, it is the name."""
    return _ENCODED.sub(lambda found: b"%%%02X" % found[0][0], name).decode()


def printable(text: str) -> str:
    """Return a text with all that does more than show a character escaped as in Python: control characters,
    line ends, marks that turn a line around, spaces that are none, and bytes that were no UTF-8."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte, as os.fsdecode has it
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()
