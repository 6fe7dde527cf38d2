"""LevelDB's tables, read without LevelDB: which are damaged, and what is sound in those.

LevelDB gives up a whole table, or a whole queue, for one damaged block: a compaction that meets it fails, and
so do all writes after that. So a table with what is sound takes the place of a damaged one. It has the same
size, for LevelDB's manifest has that written down.

A table is blocks of records, then an index, and a footer that says where that is. The names here are those of
LevelDB's doc/table_format.md: a handle is the offset and the size of a block, a varint a number in pieces of
seven bits, a restart a record in a block whose key is written in full.
"""

import itertools
import re
from collections.abc import Callable, Iterator

from darner._records import checksum
from darner.journal import snappy

# Behind each block: a byte that says how it is compressed, and the checksum.
TRAILER_BYTES = 5
PLAIN, SNAPPY = b"\0", b"\1"
FOOTER_BYTES = 48
MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
# Behind each key: the sequence number of the change, and its kind, as one number.
SEQUENCE_BYTES = 8
DELETED, PUT = 0, 1
# The highest sequence number, of a PUT: it comes before all others of its key.
LAST_SEQUENCE = b"\1" + b"\xff" * 7
# How many records share the beginnings of their keys.
RESTART_INTERVAL = 16

# How the record of an item begins whose key is written in full.
_ITEM_START = b"\0\x11"

# A table in LevelDB's list: its number, its size and its last key.
_LISTED = re.compile(rb"^ (\d+):(\d+)\['.*?' @ \d+ : \d \.\. '(.*)' @ \d+ : \d\]$", re.MULTILINE)

# Returns whether a record, given as key and value, passes its own checksum; None if it has none.
Judge = Callable[[bytes, bytes], bool | None]
# A key, with its sequence number, and a value.
Entry = tuple[bytes, bytes]
# The last key of a block, and where the block is: its offset and its size.
Place = tuple[bytes, tuple[int, int]]
# What keys are sorted by.
Order = tuple[bytes, int]


def list_tables(sstables: bytes, key: bytes = b"") -> tuple[list[tuple[int, int]], bytes]:
    """Return the number and the size of the tables in which the first record from `key` on may be, or of all
    without a `key`; and the key up to which there are no others. `sstables` is LevelDB's own list."""
    found = []
    up_to = b"\xff"
    for level, text in enumerate(re.split(rb"--- level \d+ ---\n", sstables)[1:]):
        for line in _LISTED.finditer(text):
            last = re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), line[3])
            if last >= key:
                found.append((int(line[1]), int(line[2])))
                if key and level:  # from here on they do not overlap
                    up_to = min(up_to, last)
                    break
    return found, up_to


def mend(content: bytes, size: int, judge: Judge) -> bytes | None:
    """Return a table of `size` bytes with all that is sound in the table of this content; None if that is
    not damaged."""
    index = _read_index(content) if len(content) == size else None
    if index is not None and all(_read_block(content, *place) is not None for _, place in index):
        return None
    blocks = _blocks_in_sequence(content, judge) if index is None else _blocks_by_index(content, index)
    sound: list[tuple[bytes, bytes]] = []
    before = b""
    for last, block, entries in blocks:
        if block is not None:
            sound.append((last, block))
        elif kept := _sound_entries(entries, judge, before, last):
            sound.append((last or kept[-1][0], _with_trailer(_encode_block(kept))))
        before = sound[-1][0] if sound else b""
    while (table := _encode_table(sound, size)) is None:
        sound.pop()
    return table


# Reading


def read_index(content: bytes) -> list[Place] | None:
    """Return the places of the blocks of any LevelDB's table, None if its index is damaged."""
    footer = content[-FOOTER_BYTES:]
    if len(footer) < FOOTER_BYTES or footer[-8:] != MAGIC:
        return None
    try:
        _, at = _read_handle(footer)
        records = read_records(content, _read_handle(footer, at)[0])
        return None if records is None else [(key, _read_handle(value)[0]) for key, value in records]
    except IndexError:
        return None


def read_records(content: bytes, place: tuple[int, int]) -> list[Entry] | None:
    """Return the records of the block at that place, decompressed if need be, None if it is damaged."""
    block = _read_block(content, *place)
    if block is None:
        return None
    data, kind = block[:-TRAILER_BYTES], block[-TRAILER_BYTES : 1 - TRAILER_BYTES]
    if kind == SNAPPY:
        try:
            data = snappy.decompress(data)
        except ValueError:
            return None
    elif kind != PLAIN:  # no LevelDB of the programs that are read here writes another kind
        return None
    return list(_read_entries(data))


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the varint at `at`, and where it ends. Raises IndexError if there is none."""
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


def _read_handle(data: bytes, at: int = 0) -> tuple[tuple[int, int], int]:
    """Return the handle at `at`, and where it ends."""
    offset, at = read_varint(data, at)
    size, at = read_varint(data, at)
    return (offset, size), at


def _stored_checksum(crc: int) -> bytes:
    """Return a checksum as it is stored: LevelDB masks it."""
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def _read_block(content: bytes, offset: int, size: int) -> bytes | None:
    """Return the block at that place with its trailer, None if it is damaged."""
    block = content[offset : offset + size + TRAILER_BYTES]
    is_sound = len(block) == size + TRAILER_BYTES and block[-4:] == _stored_checksum(checksum(block[:-4]))
    return block if is_sound else None


def _read_index(content: bytes) -> list[tuple[bytes, tuple[int, int]]] | None:
    """Return the last key and the handle of each block, None if the index is damaged."""
    footer = content[-FOOTER_BYTES:]
    if len(footer) < FOOTER_BYTES or footer[-8:] != MAGIC:
        return None
    try:
        metaindex, at = _read_handle(footer)
        index, _ = _read_handle(footer, at)
        block = _read_block(content, *index)
        if block is None or _read_block(content, *metaindex) is None:
            return None
        if block[-5:-4] != PLAIN:  # not written by darner: nothing can be said of it
            return []
        return [(key, _read_handle(value)[0]) for key, value in _read_entries(block[:-TRAILER_BYTES])]
    except IndexError:
        return None


def _read_entries(block: bytes) -> Iterator[Entry]:
    """Yield the records of a block without its trailer, as far as they can be parsed."""
    count = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * count
    places = range(end, len(block) - 4, 4) if end > 0 else ()
    starts = [int.from_bytes(block[at : at + 4], "little") for at in places]
    if not starts or starts[0] or any(one >= other for one, other in itertools.pairwise([*starts, end])):
        starts, end = [0], len(block)
    for start, stop in itertools.pairwise([*starts, end]):
        # damage reaches no further than the records that share the beginnings of their keys
        for key, value, _ in _parse_entries(block[:stop], start):
            yield key, value


def _parse_entries(data: bytes, at: int) -> Iterator[tuple[bytes, bytes, int]]:
    """Yield the records from `at` on, one behind the other, and where each ends."""
    key = b""
    while at < len(data):
        try:
            shared, at = read_varint(data, at)
            rest, at = read_varint(data, at)
            size, at = read_varint(data, at)
        except IndexError:
            return
        if shared > len(key) or at + rest + size > len(data) or shared + rest <= SEQUENCE_BYTES:
            return
        key = key[:shared] + data[at : at + rest]
        at += rest + size
        yield key, data[at - size : at], at


def _blocks_by_index(
    content: bytes, index: list[tuple[bytes, tuple[int, int]]]
) -> Iterator[tuple[bytes, bytes | None, list[Entry]]]:
    """Yield the last key of each block, and the block, or None and the records that can be parsed."""
    for last, (offset, size) in index:
        block = _read_block(content, offset, size)
        yield last, block, [] if block is not None else list(_read_entries(content[offset : offset + size]))


def _blocks_in_sequence(content: bytes, judge: Judge) -> Iterator[tuple[bytes, bytes | None, list[Entry]]]:
    """Yield the same of a table whose index is damaged: its blocks lie one behind the other."""
    at = 0
    while at >= 0:
        records = list(_parse_entries(content, at))
        entries = [(key, value) for key, value, _ in records]
        end = records[-1][2] if records else at
        starts = (len(entries) + RESTART_INTERVAL - 1) // RESTART_INTERVAL
        block = _read_block(content, at, end + 4 * starts + 4 - at) if entries else None
        if entries:
            yield (b"" if block is None else entries[-1][0]), block, entries
        if block is not None:
            at += len(block)
        else:  # what was parsed behind the last sound record may be anything
            sound = [stop for key, value, stop in records if _verdict((key, value), judge)]
            at = _find_sound_entry(content, max([at + 1, *sound[-1:]]), judge)


def _find_sound_entry(content: bytes, at: int, judge: Judge) -> int:
    """Return where the next sound record begins whose key is written in full, -1 if there is none."""
    while (at := content.find(_ITEM_START, at)) >= 0:
        entry = next(_parse_entries(content, at), None)
        if entry is not None and _verdict(entry[:2], judge):
            return at
        at += 1
    return -1


def _sound_entries(entries: list[Entry], judge: Judge, before: bytes, last: bytes) -> list[Entry]:
    """Return the records of a damaged block that pass their own checksums, are in order and lie between the
    keys `before` and `last`; and of those without a checksum the ones that are in order with these. If the
    last key is not known (b""), none behind the last one with a checksum."""
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
    """Return these without the ones that are out of order: a checksum does not take in all of a key."""
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
    """Return what `judge` says of a record that was put, and None for a deletion."""
    key, value = entry
    kind = key[-SEQUENCE_BYTES]
    if kind == PUT:
        return judge(key[:-SEQUENCE_BYTES], value)
    return None if kind == DELETED and not value else False


def _order(key: bytes) -> Order:
    """Return what LevelDB sorts a key by: of one key, the later change comes first."""
    return key[:-SEQUENCE_BYTES], -int.from_bytes(key[-SEQUENCE_BYTES:], "little")


# Writing


def _varints(*numbers: int) -> bytes:
    out = bytearray()
    for number in numbers:
        left = number
        while left > 127:
            out.append(left & 127 | 128)
            left >>= 7
        out.append(left)
    return bytes(out)


def _encode_block(entries: list[Entry], restart: int = RESTART_INTERVAL) -> bytes:
    """Return a block of these records, without its trailer."""
    out, starts, before = bytearray(), [], b""
    for at, (key, value) in enumerate(entries):
        if at % restart == 0:
            starts.append(len(out))
            before = b""
        pairs = zip(before, key, strict=False)
        shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        out += _varints(shared, len(key) - shared, len(value)) + key[shared:] + value
        before = key
    for start in starts or [0]:
        out += start.to_bytes(4, "little")
    return bytes(out) + len(starts or [0]).to_bytes(4, "little")


def _with_trailer(block: bytes) -> bytes:
    return block + PLAIN + _stored_checksum(checksum(block + PLAIN))


def _encode_table(blocks: list[tuple[bytes, bytes]], size: int) -> bytes | None:
    """Return a table of these blocks, each given with its last key; None if it needs more than `size`
    bytes."""
    out, index = bytearray(), []
    for last, block in blocks:
        index.append((last, _varints(len(out), len(block) - TRAILER_BYTES)))
        out += block
    if index:  # LevelDB writes such a key, too: any that is not before the last one will do
        index[-1] = (bytes([index[-1][0][0] + 1]) + LAST_SEQUENCE, index[-1][1])
    ends = [_with_trailer(_encode_block([])), _with_trailer(_encode_block(index, restart=1))]
    room = size - FOOTER_BYTES - len(out) - sum(map(len, ends))
    if room < 0:
        return None
    out += bytes(room)
    footer = b""
    for end in ends:
        footer += _varints(len(out), len(end) - TRAILER_BYTES)
        out += end
    return bytes(out) + footer.ljust(FOOTER_BYTES - 8, b"\0") + MAGIC
