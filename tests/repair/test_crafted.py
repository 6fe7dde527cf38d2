"""Forged records: no darner has written them, but their checksums are right."""

import contextlib
import os
import resource
import shutil
from pathlib import Path

import pytest
from brokers import Data, log_to
from doubles import Silence
from hypothesis import given, settings
from hypothesis import strategies as st
from leveldbs import opened_db

import darner.repair.check
import darner.repair.repair
from darner import _records
from darner._records import Change, Item, State
from darner.errors import JournalError, RepairError
from darner.journal.layout import (
    CURSOR_PREFIX,
    DEDUP_KEY,
    DELAYED_KEY,
    EXPIRING_KEY,
    KEPT_KEY,
    STATE_NAME,
    dedup_key,
    state_key,
    stored_state,
)
from darner.journal.recovery import open_journal
from darner.journal.wal_recovery import Life
from darner.queues.names import directory_of
from darner.repair.check import check
from darner.repair.repair import repair, repair_all

# The limits of numbers of 8, 32 and 64 bits, with and without a sign; and numbers of the queue itself.
EDGES = (
    0,
    1,
    2,
    3,
    4,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**48,
    2**53,
    2**62 - 1,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
LARGE_BYTES = 200_000
# `DARNER_CRAFTED=2000` for more.
EXAMPLES = int(os.environ.get("DARNER_CRAFTED", "40"))
# More memory than the tests take, and less than a forged number asks for.
ROOM_BYTES = 2 << 30

edges = st.sampled_from(EDGES)
sizes = edges.filter(lambda number: number < 2**32)
times = edges


@pytest.fixture(autouse=True, scope="module")
def bounded_memory():
    """Limit the memory, so that a gigabyte is a MemoryError."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_BYTES, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.fixture(autouse=True, scope="module")
def silence():
    with pytest.MonkeyPatch.context() as patch:
        log_to(patch, Silence())
        for module in (darner.repair.check, darner.repair.repair):
            patch.setattr(module, "log", Silence())
        yield


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A queue with every kind of record; no server runs."""
    path = tmp_path_factory.mktemp("template") / "data"
    data = Data(path)
    data.push(b"work", b"one", b"two", b"three", exptime=5000)
    data.upload(b"work", bytes(LARGE_BYTES))
    data.set(b"work", b"later", delay_ms=50)
    data.set_once(b"work", b"once", b"mine")
    data.broker.routes.source(b"work/cursor=mine", takes=True, waits=True).pop()
    queue = data.broker.queue(b"work")
    queue.close([queue.reserve(), queue.reserve()][1])
    data.push(b"sound", b"one")
    data.write_out()
    data.restart()
    data.close()
    (path / "work" / STATE_NAME).unlink(missing_ok=True)
    return path


def use(path):
    """Use the queue as a server does, from start to end; it may refuse with JournalError alone."""
    data = Data(path)
    for work in (
        lambda: data.broker.routes.source(b"work/cursor=mine", takes=True, waits=True).peek(),
        lambda: data.read_all(b"work"),
        lambda: data.push(b"work", b"new"),
        lambda: data.set_once(b"work", b"once", b"mine"),
        lambda: data.broker.routes.source(b"work/cursor=mine", takes=True, waits=True).pop(),
        lambda: data.broker.queue(b"work").flush(),
    ):
        with contextlib.suppress(JournalError):
            work()
        data.now += 100
        data.tick(2)
    assert data.read(b"sound") == b"one"
    data.push(b"sound", b"one")
    data.write_out()
    with contextlib.suppress(JournalError):
        data.broker.delete(b"work")
    data.write_out()
    data.close()


def survive(path):
    """Have the server, check and repair read the directory."""
    list(check(path))
    before = path.with_name("before")
    shutil.copytree(path, before)
    use(path)
    shutil.rmtree(path)
    before.rename(path)
    if not any(isinstance(outcome, RepairError) for _, outcome in repair_all(path)):
        assert all(not report.problems for report in check(path))
        use(path)


chunked = st.builds(Item, edges, sizes, times, times, st.none(), edges, edges, sizes, st.just(0))
inline = st.builds(Item, edges, sizes, times, times, st.just(b"crafted"))


@st.composite
def states(draw):
    state = State(draw(times), draw(edges))
    for name in ("change", "floor", "trimmed", "next_id", "next_blob", "items", "bytes"):
        setattr(state, name, draw(edges))
    return state_key(max(1, state.next_id)), _records.encode_state(state)


@st.composite
def item_records(draw):
    item = draw(chunked | inline)
    return _records.item_key(item.id), _records.encode_item(item)


@st.composite
def delayed_records(draw):
    item = draw(chunked | inline)
    key = b"d" + draw(edges).to_bytes(8, "big") + item.id.to_bytes(8, "big")
    return key, _records.encode_item(item)


ids = st.builds(_records.encode_ids, st.lists(edges, max_size=6)) | st.builds(
    _records.encode_chunk, st.binary(max_size=9)
)
set_ids = st.builds(dedup_key, edges, st.sampled_from([bytes(16), b"", bytes(99)]))
lists = st.tuples(
    st.sampled_from([KEPT_KEY, DELAYED_KEY, DEDUP_KEY, CURSOR_PREFIX + b"mine", CURSOR_PREFIX]) | set_ids, ids
)
markers = st.tuples(
    edges.map(_records.marker_key) | st.sampled_from([b"u", b"u" + bytes(20), b"u" + b"\xff" * 20]),
    st.just(b""),
)
others = st.tuples(
    st.sampled_from([b"i", b"i" + bytes(3), b"d", b"d" + bytes(30), b"z", EXPIRING_KEY]),
    st.binary(max_size=3),
)
records = st.lists(
    item_records() | delayed_records() | states() | lists | markers | others, min_size=1, max_size=4
)


class TestRecords:
    @settings(deadline=None, derandomize=True, max_examples=EXAMPLES)
    @given(records)
    def test_with_any_numbers_are_read_or_refused_and_end_nobody(self, template, tmp_path_factory, records):
        path = tmp_path_factory.mktemp("crafted") / "data"
        shutil.copytree(template, path)
        with opened_db(path / "work", compression=None) as opened:
            for key, record in records:
                opened.put(key, record)
        survive(path)
        shutil.rmtree(path.parent)

    @pytest.mark.parametrize("chunk_bytes", [0, 1 << 31, 2**32 - 1])
    @pytest.mark.parametrize("size", [0, 100, 2**63, 2**64 - 1])
    def test_of_large_items_with_impossible_chunks_are_damaged(self, template, tmp_path, chunk_bytes, size):
        path = tmp_path / "data"
        shutil.copytree(template, path)
        with opened_db(path / "work", compression=None) as opened:
            opened.put(
                _records.item_key(1), _records.encode_item(Item(1, 0, 0, 1, None, 5, size, chunk_bytes))
            )
        said = {report.where: " ".join(report.problems) for report in check(path)}
        assert "item 1 is chunked, and has numbers that no such item has" in said["work"]
        survive(path)

    def test_may_be_so_far_apart_that_nobody_counts_what_is_between(self, template, tmp_path):
        path = tmp_path / "data"
        shutil.copytree(template, path)
        with opened_db(path / "work", compression=None) as opened:
            _, record = stored_state(opened)
            state = _records.decode_state(record)
            far = 1 << 45
            opened.put(_records.item_key(far), _records.encode_item(Item(far, 0, 0, 1, b"far")))
            state.next_id, state.items, state.bytes = far + 1, state.items + 1, state.bytes + 3
            opened.put(state_key(state.next_id), _records.encode_state(state))
        data = Data(path)
        assert data.read_all(b"work")[-1] == b"far"
        assert data.broker.queue(b"work").items == 0
        data.restart()
        assert data.read(b"work") is None
        data.close()


class TestChanges:
    payloads = st.binary(max_size=40) | st.lists(edges, max_size=5).map(
        lambda numbers: b"".join(number.to_bytes(8, "big") for number in numbers)
    )
    onces = st.builds(
        lambda *parts: (int(Change.ONCE), b"".join(parts)),
        edges.map(lambda number: number.to_bytes(8, "big")),
        edges.map(lambda number: number.to_bytes(8, "big")),
        st.just(bytes(16)),
        st.sampled_from([b"", *(bytes([kind]) for kind in map(int, Change))]),
        payloads | inline.map(lambda item: item.id.to_bytes(8, "big") + _records.encode_item(item)),
    )
    changes = st.lists(
        st.tuples(st.sampled_from([*map(int, Change), 99]), payloads) | onces, min_size=1, max_size=5
    )

    @settings(deadline=None, derandomize=True, max_examples=EXAMPLES)
    @given(changes)
    def test_in_the_log_with_any_payload_are_made_or_refused(self, template, tmp_path_factory, changes):
        path = tmp_path_factory.mktemp("crafted") / "data"
        shutil.copytree(template, path)
        with opened_db(path / "work", compression=None) as opened:
            state = _records.decode_state(stored_state(opened)[1])
        numbered = [(state.change + at, kind, payload) for at, (kind, payload) in enumerate(changes, 1)]
        data = Data(path.with_name("other"))
        try:
            with contextlib.suppress(JournalError):
                lives = [Life(state.life, numbered)]
                journal = open_journal(
                    b"work", path / "work", data.broker.storage.committer, data.broker.storage.log, 1, lives
                )
                data.write_out()
                journal.close()
        finally:
            data.close()
        shutil.rmtree(path.parent)


class TestNames:
    """Names that no queue can have, given to commands on one queue."""

    NAMES = (b"", b" ", b"a/b", b"../work", b"a\nb", b"a\0b", b"\x7f", b"x" * 251, b"\xff" * 300)

    @pytest.mark.parametrize("name", NAMES)
    def test_are_refused_and_nothing_is_touched(self, template, name):
        before = sorted(template.rglob("*"))
        for work in (lambda: repair(template, name), lambda: list(check(template, name))):
            with pytest.raises(RepairError, match="is no name of a queue"):
                work()
        assert sorted(template.rglob("*")) == before

    @pytest.mark.parametrize("name", [b"..", b".", b"none", b"\xff", b"x" * 250])
    def test_of_queues_that_are_not_there_are_refused(self, template, name):
        before = sorted(template.rglob("*"))
        for work in (lambda: repair(template, name), lambda: list(check(template, name))):
            with pytest.raises(RepairError, match="has no queue"):
                work()
        assert sorted(template.rglob("*")) == before

    @pytest.mark.parametrize("name", NAMES)
    def test_in_the_log_are_left_out(self, template, tmp_path, name, monkeypatch):
        """The directory of the empty name would be the data directory itself."""
        path = tmp_path / "data"
        shutil.copytree(template, path)
        recover = "darner.journal.wal.Log.recover"
        monkeypatch.setattr(recover, lambda log: ({name: [Life(1, [(1, int(Change.RETIRE), b"")])]}, []))
        said = {report.where: report.problems for report in check(path)}
        assert "is no name of a queue" in said.pop("log")[0]
        assert {where: bool(problems) for where, problems in said.items()} == {"sound": False, "work": False}
        data = Data(path)
        assert data.read(b"sound") == b"one"
        data.write_out()
        data.close()
        assert (path / directory_of(b"work")).is_dir()
