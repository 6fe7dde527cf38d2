"""LevelDB's tables, read without LevelDB: which are damaged, and what is sound in such a one.

LevelDB gives up on a whole table, or a whole queue, for the sake of one damaged block: a compaction that
meets it fails, and all writes after that. So a table with what is sound takes the place of a damaged one. It
has the same size, for LevelDB's manifest has that written down. A table is blocks of records, then an index,
and a footer that says where that is (LevelDB's doc/table_format.md).
"""

import itertools
import re
from collections.abc import Callable, Iterator

from darner._records import checksum

# A block is followed by its kind, a byte, which says how it is compressed, and its checksum.
TRAILER_BYTES = 5
PLAIN = b"\0"
FOOTER_BYTES = 48
MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
# Behind each key are the number of its change and what that was, as one number.
MARK_BYTES = 8
DELETED, PUT = 0, 1
# The last number there may be, of a PUT: before all others of its key.
LAST_MARK = b"\1" + b"\xff" * 7
# So many records share the beginnings of their keys.
RESTART = 16

# How an item's record begins that has its whole key.
ITEM_START = b"\0\x11"

# A table in LevelDB's list: its number and size, and its last key.
LISTED = re.compile(rb"^ (\d+):(\d+)\['.*?' @ \d+ : \d \.\. '(.*)' @ \d+ : \d\]$", re.MULTILINE)

# Whether a record passes its own checksum, by its key; None if it has none.
Judge = Callable[[bytes, bytes], bool | None]
# Key, with its mark, and value.
Entry = tuple[bytes, bytes]
# By what keys are in order.
Order = tuple[bytes, int]


def listed(sstables: bytes, key: bytes = b"") -> tuple[list[tuple[int, int]], bytes]:
    """Return the number and the size of each table in LevelDB's own list, of those in which the first record
    from `key` on may be; and up to which key these are all there are. With no `key` all."""
    found = []
    up_to = b"\xff"
    for level, text in enumerate(re.split(rb"--- level \d+ ---\n", sstables)[1:]):
        for line in LISTED.finditer(text):
            last = re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), line[3])
            if last >= key:
                found.append((int(line[1]), int(line[2])))
                if key and level:  # from here on they do not overlap
                    up_to = min(up_to, last)
                    break
    return found, up_to


def mend(content: bytes, size: int, judge: Judge) -> bytes | None:
    """Return a table of `size` bytes with what is sound in the one that has this content; None if all is."""
    index = _index(content) if len(content) == size else None
    if index is not None and all(_block(content, *place) is not None for _, place in index):
        return None
    blocks = _found(content, judge) if index is None else _indexed(content, index)
    sound: list[tuple[bytes, bytes]] = []
    before = b""
    for last, block, entries in blocks:
        if block is not None:
            sound.append((last, block))
        elif kept := _kept(entries, judge, before, last):
            sound.append((last or kept[-1][0], _sealed(_packed(kept))))
        before = sound[-1][0] if sound else b""
    while (table := _assembled(sound, size)) is None:
        sound.pop()
    return table


# Reading


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins there, in pieces of seven bits, and where it ends."""
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number, at
        if shift > 63:
            raise IndexError


def _place(data: bytes, at: int = 0) -> tuple[tuple[int, int], int]:
    offset, at = _number(data, at)
    size, at = _number(data, at)
    return (offset, size), at


def _mask(crc: int) -> bytes:
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def _block(content: bytes, offset: int, size: int) -> bytes | None:
    """The block in that place, its trailer with it; None if it is damaged."""
    block = content[offset : offset + size + TRAILER_BYTES]
    is_sound = len(block) == size + TRAILER_BYTES and block[-4:] == _mask(checksum(block[:-4]))
    return block if is_sound else None


def _index(content: bytes) -> list[tuple[bytes, tuple[int, int]]] | None:
    """The last key of each block, and where that is; None if it cannot be known."""
    footer = content[-FOOTER_BYTES:]
    if len(footer) < FOOTER_BYTES or footer[-8:] != MAGIC:
        return None
    try:
        metaindex, at = _place(footer)
        index, _ = _place(footer, at)
        block = _block(content, *index)
        if block is None or _block(content, *metaindex) is None:
            return None
        if block[-5:-4] != PLAIN:  # of somebody else: nothing can be said of it
            return []
        return [(key, _place(value)[0]) for key, value in _entries(block[:-TRAILER_BYTES])]
    except IndexError:
        return None


def _entries(block: bytes) -> Iterator[Entry]:
    """The records of a block, without its trailer, as far as they can be told."""
    count = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * count
    places = range(end, len(block) - 4, 4) if end > 0 else ()
    starts = [int.from_bytes(block[at : at + 4], "little") for at in places]
    if not starts or starts[0] or any(one >= other for one, other in itertools.pairwise([*starts, end])):
        starts, end = [0], len(block)
    for start, stop in itertools.pairwise([*starts, end]):
        # what is damaged ends with the records that share the beginnings of their keys
        for key, value, _ in _run(block[:stop], start):
            yield key, value


def _run(data: bytes, at: int) -> Iterator[tuple[bytes, bytes, int]]:
    """The records that begin there, one behind the other, and where each ends."""
    key = b""
    while at < len(data):
        try:
            shared, at = _number(data, at)
            rest, at = _number(data, at)
            size, at = _number(data, at)
        except IndexError:
            return
        if shared > len(key) or at + rest + size > len(data) or shared + rest <= MARK_BYTES:
            return
        key = key[:shared] + data[at : at + rest]
        at += rest + size
        yield key, data[at - size : at], at


def _indexed(
    content: bytes, index: list[tuple[bytes, tuple[int, int]]]
) -> Iterator[tuple[bytes, bytes | None, list[Entry]]]:
    """The last key of each block; the block itself, or what can be told of it."""
    for last, (offset, size) in index:
        block = _block(content, offset, size)
        yield last, block, [] if block is not None else list(_entries(content[offset : offset + size]))


def _found(content: bytes, judge: Judge) -> Iterator[tuple[bytes, bytes | None, list[Entry]]]:
    """As `_indexed`, of a table whose index is lost: blocks lie one behind the other up to that."""
    at = 0
    while at >= 0:
        records = list(_run(content, at))
        entries = [(key, value) for key, value, _ in records]
        end = records[-1][2] if records else at
        starts = (len(entries) + RESTART - 1) // RESTART
        block = _block(content, at, end + 4 * starts + 4 - at) if entries else None
        if entries:
            yield (b"" if block is None else entries[-1][0]), block, entries
        if block is not None:
            at += len(block)
        else:  # what is parsed behind the last sound record may be anything
            sound = [stop for key, value, stop in records if _verdict((key, value), judge)]
            at = _next_sound(content, max([at + 1, *sound[-1:]]), judge)


def _next_sound(content: bytes, at: int, judge: Judge) -> int:
    """Where the next sound record is that has its whole key; -1 if there is none."""
    while (at := content.find(ITEM_START, at)) >= 0:
        entry = next(_run(content, at), None)
        if entry is not None and _verdict(entry[:2], judge):
            return at
        at += 1
    return -1


def _kept(entries: list[Entry], judge: Judge, before: bytes, last: bytes) -> list[Entry]:
    """Those records, between these keys and in order, that pass their own checksums; and of those that have
    none the ones that are in order with these. If the last key is not known, none is behind the last that has
    one."""
    judged = [(_order(entry[0]), _verdict(entry, judge), entry) for entry in entries]
    bounds = _order(before), _order(last) if last else None
    judged = [
        each
        for each in judged
        if each[1] is not False and bounds[0] < each[0] and (bounds[1] is None or each[0] <= bounds[1])
    ]
    sound = _in_order([order for order, verdict, _ in judged if verdict])
    kept: list[Entry] = []
    previous, left = bounds[0], iter([*sound, *filter(None, [bounds[1]])])
    following = next(left, None)
    for order, verdict, entry in judged:
        if verdict and order == following:
            previous, following = order, next(left, None)
        elif verdict or following is None or not previous < order < following:
            continue
        else:
            previous = order
        kept.append(entry)
    return kept


def _in_order(orders: list[Order]) -> list[Order]:
    """These without the ones that are out of order: a checksum does not take in all of a key."""
    kept: list[Order] = []
    for at, order in enumerate(orders):
        if kept and order <= kept[-1]:
            following = orders[at + 1] if at + 1 < len(orders) else None
            if following is None or following > kept[-1]:
                continue  # this one is wrong, and not the one before it
            kept.pop()
        if not kept or kept[-1] < order:
            kept.append(order)
    return kept


def _verdict(entry: Entry, judge: Judge) -> bool | None:
    key, value = entry
    kind = key[-MARK_BYTES]
    if kind == PUT:
        return judge(key[:-MARK_BYTES], value)
    return None if kind == DELETED and not value else False


def _order(key: bytes) -> Order:
    """By what LevelDB has keys in order: the later change of a key comes first."""
    return key[:-MARK_BYTES], -int.from_bytes(key[-MARK_BYTES:], "little")


# Writing


def _numbered(*numbers: int) -> bytes:
    out = bytearray()
    for number in numbers:
        left = number
        while left > 127:
            out.append(left & 127 | 128)
            left >>= 7
        out.append(left)
    return bytes(out)


def _packed(entries: list[Entry], restart: int = RESTART) -> bytes:
    """The block of these records."""
    out, starts, before = bytearray(), [], b""
    for at, (key, value) in enumerate(entries):
        if at % restart == 0:
            starts.append(len(out))
            before = b""
        pairs = zip(before, key, strict=False)
        shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        out += _numbered(shared, len(key) - shared, len(value)) + key[shared:] + value
        before = key
    for start in starts or [0]:
        out += start.to_bytes(4, "little")
    return bytes(out) + len(starts or [0]).to_bytes(4, "little")


def _sealed(block: bytes) -> bytes:
    return block + PLAIN + _mask(checksum(block + PLAIN))


def _assembled(blocks: list[tuple[bytes, bytes]], size: int) -> bytes | None:
    """The table of these blocks, each with its last key; None if that is more than `size` bytes."""
    out, index = bytearray(), []
    for last, block in blocks:
        index.append((last, _numbered(len(out), len(block) - TRAILER_BYTES)))
        out += block
    if index:  # as LevelDB has it: any key that is not before the last will do
        index[-1] = (bytes([index[-1][0][0] + 1]) + LAST_MARK, index[-1][1])
    ends = [_sealed(_packed([])), _sealed(_packed(index, restart=1))]
    room = size - FOOTER_BYTES - len(out) - sum(map(len, ends))
    if room < 0:
        return None
    out += bytes(room)
    footer = b""
    for end in ends:
        footer += _numbered(len(out), len(end) - TRAILER_BYTES)
        out += end
    return bytes(out) + footer.ljust(FOOTER_BYTES - 8, b"\0") + MAGIC
