"""The flags of memcached's meta commands `mg`, `ms` and `md`, and the replies that they ask for.

Bytes alone: no queue and no socket in here. The options of a queue stay a part of the key: `mg work/open v`.
"""

import base64
import binascii
import re

BAD_FORMAT = b"CLIENT_ERROR bad command line format\r\n"
INVALID_FLAG = b"CLIENT_ERROR invalid flag\r\n"
INVALID_MODE = b"CLIENT_ERROR invalid mode: ms takes S alone\r\n"

# The flags that each verb takes, and those of them that have a token behind them.
FLAGS = {b"mg": b"vsfckbOqthl", b"ms": b"FTckbOqIM", b"md": b"kbOqC"}
TOKENS = b"FTOCM"
# As many digits as the numbers of other commands may have.
NUMBER = re.compile(rb"-?[0-9]{1,18}")
TOKEN = re.compile(rb"[0-9]{1,20}")

# The meta replies for those of the classic commands, and which of them the flag `q` hides.
STATUSES = {
    b"STORED\r\n": b"HD",
    b"NOT_STORED\r\n": b"NS",
    b"DELETED\r\n": b"HD",
    b"NOT_FOUND\r\n": b"NF",
    b"END\r\n": b"EN",
}
QUIET = {b"mg": (b"EN",), b"ms": (b"HD",), b"md": (b"HD", b"NF")}


class Meta:
    """The flags of one meta command."""

    __slots__ = ("_asked", "_flags", "_verb", "exptime", "flags", "is_quiet", "key", "token", "wants_value")

    def __init__(self, verb: bytes, words: list[bytes]) -> None:
        """`words` are the key and the flags. Raises ValueError with the reply if there is something wrong."""
        if not words:
            raise ValueError(BAD_FORMAT)
        self._verb = verb
        self._asked, *self._flags = words
        # decoded, if it came in base64
        self.key = self._asked
        # of `ms`: the item's flags and expiry, as in `set`
        self.flags = self.exptime = 0
        # of `md`: the reserved item to close, if it is not the queue to delete
        self.token: int | None = None
        self.is_quiet = b"q" in self._flags
        self.wants_value = b"v" in self._flags
        for flag in self._flags:
            self._take(flag[:1], flag[1:])

    def _take(self, letter: bytes, token: bytes) -> None:
        if letter not in FLAGS[self._verb] or (token and letter not in TOKENS):
            raise ValueError(INVALID_FLAG)
        if letter == b"F":
            self.flags = _number(token)
        elif letter == b"T":
            self.exptime = _number(token)
        elif letter == b"C":
            self.token = _token(token)
        elif letter == b"M" and token not in (b"S", b"s"):
            raise ValueError(INVALID_MODE)
        elif letter == b"b":
            try:
                self.key = base64.b64decode(self._asked, validate=True)
            except binascii.Error:
                raise ValueError(BAD_FORMAT) from None

    def answer(self, reply: bytes, id: int = 0) -> bytes:
        """Return the meta reply for one of the classic commands; an error stays as it is. `id` is that of the
        item stored."""
        status = STATUSES.get(reply)
        if status is None:
            return reply
        if self.is_quiet and status in QUIET[self._verb]:
            return b""
        return status + self._returned({b"c": id} if status == b"HD" else {}) + b"\r\n"

    def found(self, size: int, flags: int, token: int, attempts: int, left_s: int, age_s: int) -> bytes:
        """Return the line that answers `mg` with an item; its data follow if the flags ask for them. `left_s`
        is in how many seconds it expires, -1 for never, and `age_s` how many seconds ago it was set."""
        start = b"VA %d" % size if self.wants_value else b"HD"
        figures = {b"s": size, b"f": flags, b"c": token, b"h": int(attempts > 0), b"t": left_s, b"l": age_s}
        return start + self._returned(figures) + b"\r\n"

    def _returned(self, figures: dict[bytes, int]) -> bytes:
        """Return the flags that ask for something with the answer to each, in the order of the flags."""
        reply = b""
        for flag in self._flags:
            if flag[:1] == b"O":
                reply += b" " + flag
            elif flag == b"k":
                reply += b" k" + self._asked + (b" b" if b"b" in self._flags else b"")
            elif flag in figures:
                reply += b" %s%d" % (flag, figures[flag])
        return reply


def _number(token: bytes) -> int:
    if not NUMBER.fullmatch(token):
        raise ValueError(BAD_FORMAT)
    return int(token)


def _token(token: bytes) -> int:
    if not TOKEN.fullmatch(token) or int(token) >> 64:
        raise ValueError(BAD_FORMAT)
    return int(token)
