"""The bytes of an item as a person reads them: text, JSON or hexadecimal digits.

Nothing in them has any effect but being seen; the templates escape what HTML would obey.
"""

import json
from collections.abc import Iterator

from darner.printable import printable

FORMS = ("auto", "text", "json", "hex")


def readable(data: bytes, form: str) -> tuple[str, str]:
    """Return the bytes in one of FORMS, and the name of the form: `auto` is the first that fits, and so is
    `json` where they are none."""
    if form in ("auto", "json") and (text := _json(data)) is not None:
        return "json", text
    if form == "text":
        return "text", _lines(data.decode(errors="surrogateescape"))
    if form != "hex":
        try:
            return "text", _lines(data.decode())
        except UnicodeDecodeError:
            pass
    return "hex", "\n".join(_hex_lines(data))


def _json(data: bytes) -> str | None:
    if data.lstrip()[:1] not in (b"{", b"["):
        return None
    try:
        return _lines(json.dumps(json.loads(data), indent=2, ensure_ascii=False))
    except (ValueError, RecursionError):
        return None


def _lines(text: str) -> str:
    return "\n".join(printable(line.expandtabs()) for line in text.split("\n"))


def _hex_lines(data: bytes) -> Iterator[str]:
    for at in range(0, len(data), 16):
        piece = data[at : at + 16]
        seen = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
        yield f"{at:08x}  {piece.hex(' '):<47}  {seen}"
