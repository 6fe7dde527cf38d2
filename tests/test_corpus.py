"""The inputs that the fuzzer has found, in corpus/, once more; fuzz/ starts from them."""

import itertools
import random
import zlib
from pathlib import Path

import pytest
from slow_parser import check

from darner import _records

CORPUS = Path(__file__).with_name("corpus")
# Longer inputs are not cut at every byte: that would be quadratic.
SHORT_BYTES = 128


def parser(data: bytes) -> None:
    """Raise if `data`, as a client sends it, is not the same to the compiled parser and the slow one: as a
    whole, byte by byte, and in two pieces cut at each byte or, of longer ones, at some."""
    check(data)
    check(data, *(data[at : at + 1] for at in range(len(data))))
    if len(data) <= SHORT_BYTES:
        cuts = [[at] for at in range(1, len(data))]
    else:
        dice = random.Random(zlib.crc32(data))
        cuts = [sorted(dice.choices(range(len(data)), k=dice.randint(1, 5))) for _ in range(20)]
    for marks in cuts:
        check(data, *(data[start:stop] for start, stop in itertools.pairwise([0, *marks, len(data)])))


def records(data: bytes) -> None:
    """Raise if a record as it may lie on a damaged disk is not read or refused with ValueError. The checksum
    is made right, so that it is not always that which refuses: of an id and a number whose low half is 0, it
    is that of the bytes and the record's size."""
    zero = 1 << 32
    size = 4 + len(data)
    record = _records.checksum(data, size).to_bytes(4, "big") + data
    for read, arguments in (
        (_records.decode_item, (_records.item_key(zero), record)),
        (_records.decode_item, (data[:9], record)),
        (_records.blob_of, (_records.item_key(zero), record)),
        (_records.decode_chunk, (record,)),
        (_records.decode_state, (record,)),
        (_records.decode_ids, (record,)),
        (_records.decode_ids, (data,)),
    ):
        try:
            read(*arguments)
        except ValueError:
            continue
    # of a frame that holds a record the checksum is that of its start
    for checked in (len(data), 29):
        frame = _records.checksum(data[:checked]).to_bytes(4, "big") + data
        _records.read_segment(b"darner 1" + zero.to_bytes(8, "big") + frame + frame)
        marker = b"marker.."
        content = (marker + frame) * 2
        head = _records.segment_head(zero, int.from_bytes(marker, "big"), 0, 0, 128 + len(content))
        for lost in (b"", marker):
            _records.read_segment(head + lost + content + head)


def inputs(name: str) -> list:
    return [pytest.param(path.read_bytes(), id=path.name) for path in sorted((CORPUS / name).iterdir())]


@pytest.mark.parametrize("data", inputs("parser"))
def test_stream_in_any_cut_is_parsed_as_the_contract_says(data):
    parser(data)


@pytest.mark.parametrize("data", inputs("records"))
def test_record_is_read_or_refused(data):
    records(data)
