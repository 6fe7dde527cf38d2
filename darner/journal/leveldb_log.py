"""Whether the log that LevelDB itself keeps is whole, which LevelDB does not say.

LevelDB takes what it cannot read of its log for not written, up to the next block, and goes on behind it.
With its option `paranoid_checks` it refuses what a power cut leaves as well, and later any table with one
flipped bit. The rule here: each of our writes is synced before the next is begun, so of a log that nobody
damaged only the last write may be there in part. A break before a whole write is damage.

The format is LevelDB's doc/log_format.md.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from darner._records import checksum

BLOCK_BYTES = 32 << 10
# the checksum, the size, the type
HEAD = struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = range(1, 5)
# What LevelDB adds to a checksum before it stores it: a checksum over stored checksums would tell nothing.
MASK = 0xA282EAD8


def damage(directory: Path) -> str | None:
    """Return what is damaged in LevelDB's logs in a directory, None if they are whole.

    What is missing at the end of a log is not seen. Raises OSError if a log cannot be read.
    """
    for path in directory.glob("*.log"):
        broken: int | None = None
        for at, content in writes(path.read_bytes()):
            if content is None and broken is None:
                broken = at
            elif content is not None and broken is not None:
                return f"{path} is damaged at byte {broken}, and goes on behind that"
    return None


def writes(data: bytes) -> Iterator[tuple[int, bytes | None]]:
    """Yield the writes in a log: where each begins, or breaks off, and its bytes, None if it is not whole."""
    begun: int | None = None
    parts: list[bytes] = []
    for at, end, kind in _fragments(data):
        if kind in (FULL, FIRST) and begun is not None:
            yield begun, None
            begun = None
        content = data[at + HEAD.size : end]
        if kind == FULL:
            yield at, content
        elif kind == FIRST:
            begun, parts = at, [content]
        elif kind == MIDDLE and begun is not None:
            parts.append(content)
        elif kind == LAST and begun is not None:
            yield begun, b"".join([*parts, content])
            begun = None
        elif kind == 0:
            yield at, None
            begun = None
    if begun is not None:
        yield begun, None


def _fragments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the fragments of writes in a log: where each begins and ends, and its type, 0 if it is not
    whole."""
    at = 0
    while at + HEAD.size <= len(data):
        left = BLOCK_BYTES - at % BLOCK_BYTES
        if left < HEAD.size:
            at += left
            continue
        crc, size, kind = HEAD.unpack_from(data, at)
        end = at + HEAD.size + size
        if size > left - HEAD.size or end > len(data) or not FULL <= kind <= LAST:
            yield at, end, 0
            at += left
            continue
        crc = (crc - MASK) & 0xFFFFFFFF
        is_whole = checksum(data[at + HEAD.size - 1 : end]) == (crc >> 17 | crc << 15) & 0xFFFFFFFF
        yield at, end, kind if is_whole else 0
        at = end
