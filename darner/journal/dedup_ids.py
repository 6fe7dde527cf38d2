"""The ids by which sets that are sent again are recognized: those that one journal remembers, and since when.

An id is kept as a hash, with a key that no client knows: nobody can find an id that passes for another one's.
Ids lie in generations, and new ones go to the last. Once that is as old as ids are remembered for, the next
one begins, and the one before the last is outdated as a whole. So there are two at most to look into, and
what is outdated is deleted as a range, without looking for it.

A generation that this process has begun has a filter: it spares looking into LevelDB for an id that is new.
"""

import hashlib
from typing import Any, NamedTuple

from darner import _records
from darner._records import Change
from darner.config.kinds import LARGEST
from darner.journal.batch import Batch
from darner.journal.id_filter import IdFilter
from darner.journal.layout import DEDUP_DIGEST_BYTES, DEDUP_KEY, dedup_key
from darner.journal.records import Records
from darner.journal.snapshot import Snapshot

# What it takes in memory to stage an id.
ID_BYTES = 200
# How many outdated ids are deleted with one batch: several times as many as a batch can bring.
TRIM_IDS = 16_384
# About how many bytes one takes in LevelDB.
STORED_BYTES = 45
# What an id adds to the frame of an item in the log: generation, stamp, hash and the kind of change.
FRAME_ID_BYTES = 16 + DEDUP_DIGEST_BYTES + 1

# The generations of a journal that has had no ids.
_FIRST = 1


class Once(NamedTuple):
    """What is remembered of a set: the generation and the hash of its id, and when it came, a stamp."""

    generation: int
    stamp: int
    digest: bytes

    def encode(self, kind: int, payload: bytes) -> bytes:
        """Return the payload of a ONCE with the change that is made with it."""
        numbers = self.generation.to_bytes(8, "big") + self.stamp.to_bytes(8, "big")
        return numbers + self.digest + bytes([kind]) + payload


def decode_once(payload: bytes) -> tuple[Once, int, bytes]:
    """Return what a ONCE remembers, and the kind and the payload of the change made with it. Raises
    ValueError if it is damaged."""
    if len(payload) < FRAME_ID_BYTES:
        raise ValueError("the log has an id that is cut short")
    generation, stamp = (int.from_bytes(payload[at : at + 8], "big") for at in (0, 8))
    kind = payload[FRAME_ID_BYTES - 1]
    if kind not in (Change.PUT, Change.DELAY):
        raise ValueError(f"the log has an id with a change of kind {kind}")
    if not (0 < generation < LARGEST and 0 < stamp < LARGEST):
        raise ValueError("the log has an id with numbers that none has")
    return Once(generation, stamp, payload[16 : FRAME_ID_BYTES - 1]), kind, payload[FRAME_ID_BYTES:]


def without_id(change: tuple[int, int, bytes]) -> tuple[int, int, bytes]:
    """Return the number, the kind and the payload of a change; of a ONCE those of the change made with it."""
    number, kind, payload = change
    if kind != Change.ONCE or len(payload) < FRAME_ID_BYTES:
        return change
    return number, payload[FRAME_ID_BYTES - 1], payload[FRAME_ID_BYTES:]


class DedupIds:
    """The generations of one journal's ids. The ids are in the batch that is handed in, and in LevelDB.

    `first`: the oldest generation that counts. `last`: the one that takes new ids. `begun_ms`: when its first
    id came, a stamp; 0 if nothing is remembered. `latest_ms`: when the latest id came.
    """

    __slots__ = ("_filters", "_state", "_trim_from", "_trimmed", "begun_ms", "first", "last", "latest_ms")

    def __init__(self, found: Snapshot) -> None:
        # its life is the key of the hashes
        self._state = found.state
        # by generation, what knows most ids that are not in it
        self._filters: dict[int, IdFilter] = {}
        # no record is left to delete in generations below
        self._trimmed, self.first, self.last, self.begun_ms, self.latest_ms = found.dedup or (
            _FIRST, _FIRST, _FIRST, 0, 0,
        )  # fmt: skip
        # the key to go on from, so that no deletion walks over what an earlier one has deleted
        self._trim_from = b""

    @property
    def numbers(self) -> list[int]:
        """What is stored of the generations; empty as long as there was no id."""
        if self.last == _FIRST and not self.begun_ms:
            return []
        return [self._trimmed, self.first, self.last, self.begun_ms, self.latest_ms]

    def digest(self, id: bytes) -> bytes:
        """Return the hash of an id."""
        key = int(self._state.life).to_bytes(8, "big")
        return hashlib.blake2b(id, digest_size=DEDUP_DIGEST_BYTES, key=key).digest()

    def generations(self, digest: bytes) -> list[int]:
        """Return the generations in which an id may be, the last one first."""
        if not self.begun_ms:
            return []
        known = self._filters
        return [
            number
            for number in range(self.last, self.first - 1, -1)
            if number not in known or known[number].may_have(digest)
        ]

    # Changes

    def add(self, batch: Batch, once: Once) -> list[dict[bytes, int]]:
        """Stage an id, unless it is outdated; return the staged ones that are outdated now."""
        if once.generation < self.first:
            return []
        outdated: list[dict[bytes, int]] = []
        if once.generation > self.last:
            self.first = once.generation - 1 if self.begun_ms else once.generation
            self.last, self.begun_ms = once.generation, 0
            outdated = self._take_outdated(batch)
        if not self.begun_ms:
            self.begun_ms = once.stamp
            self._filters[once.generation] = IdFilter()
        if once.generation in self._filters:
            self._filters[once.generation].add(once.digest)
        self.latest_ms = once.stamp
        batch.dedup_ids.setdefault(once.generation, {})[once.digest] = once.stamp
        batch.dedup_changed = True
        batch.room_bytes -= ID_BYTES
        return outdated

    def remove(self, batch: Batch, once: Once) -> None:
        """Forget an id that is staged, for its item is lost."""
        if batch.dedup_ids.get(once.generation, {}).pop(once.digest, None) is not None:
            batch.room_bytes += ID_BYTES

    def forget(self, batch: Batch) -> list[dict[bytes, int]]:
        """Forget all ids, in a time that does not grow with them; return those that are staged."""
        if self.begun_ms:
            self.last, self.begun_ms = self.last + 1, 0
            batch.dedup_changed = True
        self.first = self.last
        return self._take_outdated(batch)

    def _take_outdated(self, batch: Batch) -> list[dict[bytes, int]]:
        outdated = [batch.dedup_ids.pop(number) for number in list(batch.dedup_ids) if number < self.first]
        batch.room_bytes += ID_BYTES * sum(map(len, outdated))
        self._filters = {number: one for number, one in self._filters.items() if number >= self.first}
        return outdated

    def release(self) -> None:
        """Release the memory of the filters, for a journal to which nothing happens."""
        self._filters.clear()

    def take_back(self, batch: Batch, sealed: Batch) -> None:
        """Stage once more what `sealed` has, which could not be written, below what `batch` has."""
        for generation, ids in sealed.dedup_ids.items():
            if generation >= self.first:
                batch.dedup_ids[generation] = ids | batch.dedup_ids.get(generation, {})
                batch.room_bytes -= ID_BYTES * len(ids)
        batch.dedup_changed |= sealed.dedup_changed

    # LevelDB

    @staticmethod
    def staged(records: Records, generation: int, digest: bytes) -> int:
        """Return when an id came, a stamp, if a batch has it in this generation; 0 if none has."""
        stamp = records.batch.dedup_ids.get(generation, {}).get(digest, 0)
        if not stamp and records.sealed is not None:
            stamp = records.sealed.dedup_ids.get(generation, {}).get(digest, 0)
        return stamp

    @property
    def has_dead(self) -> bool:
        """Whether LevelDB may have outdated ids."""
        return self._trimmed < self.first

    @property
    def first_key(self) -> bytes:
        """The key below which all ids are outdated."""
        return dedup_key(self.first, b"")

    def write(self, db: Any, write: Any, batch: Batch) -> None:
        """Add to a write batch of LevelDB the ids of the sealed `batch`, and the deletion of some outdated
        ones. In a thread. Raises leveldb.Error."""
        for generation, ids in batch.dedup_ids.items():
            for digest, stamp in ids.items():
                write.put(dedup_key(generation, digest), _records.encode_ids([stamp]))
        if not batch.dedup_numbers:
            return
        trimmed, first, *others = batch.dedup_numbers
        batch.trimmed_ids = 0
        if trimmed < first:
            start, stop = max(self._trim_from, dedup_key(trimmed, b"")), dedup_key(first, b"")
            batch.dedup_trim_from = stop
            with db.iterator(start=start, stop=stop, include_value=False, fill_cache=False) as keys:
                for key in keys:
                    if batch.trimmed_ids == TRIM_IDS:
                        batch.dedup_trim_from = key
                        break
                    write.delete(key)
                    batch.trimmed_ids += 1
                else:
                    trimmed = first
        batch.dedup_trimmed = trimmed
        write.put(DEDUP_KEY, _records.encode_ids([trimmed, first, *others]))

    def end_write(self, written: Batch) -> None:
        """Note that a batch is in LevelDB."""
        if written.dedup_numbers:
            self._trimmed, self._trim_from = written.dedup_trimmed, written.dedup_trim_from
