"""The snapshot that a closed journal leaves to the next start, as a record."""

import os

import pytest

from darner import _records
from darner._records import State
from darner.journal import files
from darner.journal.snapshot import Snapshot, decode, read


def full():
    state = State(77, 4711)
    state.change, state.next_id, state.next_blob = 9, 5, 1 << 50
    return Snapshot(
        state,
        kept=[1, 3],
        has_kept=True,
        blobs=[1 << 40],
        expiring=True,
        cursors={b"billing": [4, 2], b"\xff" * 250: [1]},
        delayed_items=2,
        delayed_bytes=1 << 40,
        live_from=7,
        due_from=[1, 1 << 60],
        next_due=[5],
        dedup=[1, 2, 3, 1 << 60, 1 << 61],
        settings=b"max_items=5 max_age=300ms",
    )


def fields(found):
    return {**vars(found), "state": _records.encode_state(found.state)}


@pytest.mark.parametrize(
    "found", [full(), Snapshot(State(1, 2)), Snapshot(State(1, 2), settings=b"a=b", cursors={b"c": [1]})]
)
def test_comes_back_from_its_record(found):
    assert fields(decode(found.encode())) == fields(found)


def test_as_darner_1_0_0_left_it_says_that_there_was_nothing_but_what_was_flushed():
    state = full().state
    found = decode(_records.encode_state(state))
    assert fields(found) == fields(Snapshot(state, live_from=state.next_blob))


def test_without_settings_or_ids_of_sets_is_what_earlier_versions_read():
    assert _records.decode_chunk(Snapshot(State(1, 2)).encode())[0] == 2
    assert _records.decode_chunk(Snapshot(State(1, 2), dedup=full().dedup).encode())[0] == 3


@pytest.mark.parametrize(
    "dedup", [[1], [0, 1, 1, 0, 0], [2, 1, 1, 0, 0], [1, 2, 1, 0, 0], [1, 1, 1, 0, 1 << 62]]
)
def test_with_generations_of_ids_that_none_has_is_refused(dedup):
    with pytest.raises(ValueError, match=r"generations|number"):
        decode(Snapshot(State(1, 2), dedup=dedup).encode())


def test_that_is_damaged_or_of_another_version_is_refused():
    record = full().encode()
    for at in range(len(record)):
        with pytest.raises(ValueError, match=r"checksum|cut short|version"):
            decode(record[:at] + bytes([record[at] ^ 1]) + record[at + 1 :])
    with pytest.raises(ValueError, match="version 5"):
        decode(_records.encode_chunk(b"\x05" + record[5:]))


def test_that_ends_too_soon_is_refused_whatever_its_checksum_says():
    body = _records.decode_chunk(full().encode())
    for size in range(len(body) - 1):
        try:
            decode(_records.encode_chunk(body[:size]))
        except ValueError:
            continue
        # unless a whole cursor is missing
        assert size in (len(body) - (1 + 250 + 4 + 8), len(body) - (1 + 250 + 4 + 8) - (1 + 7 + 4 + 16))


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_in_whose_place_is_no_file_is_not_waited_for(tmp_path, make):
    make(tmp_path / "state")
    with pytest.raises((OSError, ValueError)):
        read(tmp_path / "state")


def test_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "state"
    assert read(path) is None
    path.write_bytes(full().encode())
    assert read(path) is not None
    monkeypatch.setattr(files, "MAX_SMALL_BYTES", 100)
    with pytest.raises(ValueError, match="no file of darner"):
        read(path)
