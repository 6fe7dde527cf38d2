"""Snappy, which LevelDB compresses the blocks of its tables with: decompressing alone, for darner compresses
none.

The format is that of Snappy's format_description.txt. A block begins with its size; then come literals, which
are bytes as they are, and copies of bytes that came before.
"""

# The lowest two bits of a tag say what it begins: a literal, or a copy whose offset has one, two or four
# bytes.
_LITERAL = 0
_OFFSET_BYTES = {1: 1, 2: 2, 3: 4}
# A literal's tag has its size less one, up to this; above it tells how many bytes behind the tag have it.
_MAX_SIZE_IN_TAG = 59


def decompress(data: bytes) -> bytes:
    """Return the bytes of a compressed block. Raises ValueError if it is none."""
    try:
        return _decompress(data)
    except IndexError:
        raise ValueError("a compressed block ends too soon") from None


def _decompress(data: bytes) -> bytes:
    size, at = _read_size(data)
    out = bytearray()
    end = len(data)
    while at < end:
        tag = data[at]
        at += 1
        kind = tag & 3
        if kind == _LITERAL:
            length = tag >> 2
            if length > _MAX_SIZE_IN_TAG:
                width = length - _MAX_SIZE_IN_TAG
                length = int.from_bytes(data[at : at + width], "little")
                at += width
            length += 1
            out += data[at : at + length]
            at += length
            continue
        width = _OFFSET_BYTES[kind]
        offset = int.from_bytes(data[at : at + width], "little")
        at += width
        length = (tag >> 2) + 1
        if width == 1:
            offset |= (tag >> 5) << 8
            length = (tag >> 2 & 7) + 4
        start = len(out) - offset
        if not offset or start < 0:
            raise ValueError("a compressed block copies bytes from before its beginning")
        if offset >= length:
            out += out[start : start + length]
        else:  # a copy may reach into what it makes itself: then it repeats
            out += (out[start:] * (length // offset + 1))[:length]
    if at != end or len(out) != size:
        raise ValueError(f"a compressed block has {len(out)} bytes, not {size}")
    return bytes(out)


def _read_size(data: bytes) -> tuple[int, int]:
    """Return how many bytes a block has, and where it goes on. Raises IndexError if that is missing."""
    size = shift = at = 0
    while True:
        byte = data[at]
        at += 1
        size |= (byte & 127) << shift
        if byte < 128:
            return size, at
        shift += 7
