"""What Snappy's compressor may write, as its format_description.txt has it."""

import pytest

from darner.journal.snappy import decompress


@pytest.mark.parametrize(
    ("block", "data"),
    [
        (b"\0", b""),
        (b"\5\x10hello", b"hello"),
        (b"\x3c" + bytes([59 << 2]) + bytes(60), bytes(60)),
        (b"\x3d" + bytes([60 << 2, 60]) + bytes(61), bytes(61)),
        (b"\xac\2" + bytes([61 << 2, 43, 1]) + bytes(300), bytes(300)),
        # copies: with an offset of one byte and three bits, of two bytes, of four bytes
        (b"\x0a\x14abcdef" + bytes([1, 6]), b"abcdefabcd"),
        (b"\x08\x14abcdef" + bytes([1 << 2 | 2, 4, 0]), b"abcdefcd"),
        (b"\x08\x14abcdef" + bytes([1 << 2 | 3, 4, 0, 0, 0]), b"abcdefcd"),
        # one that repeats what it makes itself
        (b"\x0c\x04ab" + bytes([9 << 2 | 2, 2, 0]), b"ab" * 6),
        # three bits of the offset are in the tag
        (b"\x94\4" + bytes([61 << 2, 0x0F, 2]) + bytes(range(132)) * 4 + bytes([2 << 5 | 1, 0x10]),
         bytes(range(132)) * 4 + bytes(range(4))),
    ],
)  # fmt: skip
def test_is_decompressed(block, data):
    assert decompress(block) == data


@pytest.mark.parametrize(
    "block",
    [
        b"", b"\xff", b"\5\x10hell", b"\6\x10hello", b"\4\x10hello", b"\5", b"\1" + bytes([62 << 2]),
        b"\x0a\x14abcdef" + bytes([1, 7]), b"\x0a\x14abcdef" + bytes([1, 0]), b"\x0a\x14abcdef" + bytes([1]),
    ],
)  # fmt: skip
def test_that_is_damaged_is_refused(block):
    with pytest.raises(ValueError, match="compressed block"):
        decompress(block)
