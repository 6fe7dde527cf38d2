"""Records in a queue's LevelDB that fail their own checksum."""

from darner import _records
from darner._records import RECORD_HEAD_BYTES
from darner.errors import NewerFormatError
from darner.journal.layout import (
    ATTEMPTS_PREFIX,
    CURSOR_PREFIX,
    DEDUP_KEY,
    DELAYED_KEY,
    EXPIRING_KEY,
    KEPT_KEY,
    is_state_key,
    state_key,
)


def is_sound(key: bytes, record: bytes) -> bool | None:
    """Return whether a record passes its own checksum, None if it has none."""
    try:
        if key[:1] == b"i" and len(key) == 9:
            _records.decode_item(key, record)
        elif key[:1] == b"d" and len(key) == 17:
            _records.decode_item(b"i" + key[9:], record)
        elif is_state_key(key):
            return state_key(_records.decode_state(record).next_id) == key
        elif key[:1] in (CURSOR_PREFIX, ATTEMPTS_PREFIX, DEDUP_KEY) or key in (KEPT_KEY, DELAYED_KEY):
            _records.check_chunk(record)
        else:
            return None if key == EXPIRING_KEY or (key[:1] == b"u" and len(key) == 9) else False
    except NewerFormatError:
        return True
    except ValueError:
        return False
    return True


class DamagedRecordError(Exception):
    """The record of an item, waiting or delayed, is damaged."""

    def __init__(self, key: bytes, record: bytes, reason: str = "") -> None:
        super().__init__(reason)
        self.key = key
        self.id = int.from_bytes(key[-8:] if key[:1] == b"d" else key[1:9], "big")
        self.record = record

    @property
    def size(self) -> int:
        """How many bytes the item had, as far as the record tells."""
        if self._has_blob:
            return int.from_bytes(self.record[RECORD_HEAD_BYTES + 8 : RECORD_HEAD_BYTES + 16], "big")
        return max(0, len(self.record) - RECORD_HEAD_BYTES)

    @property
    def blob(self) -> int:
        """The number of the blob that the item had, as far as the record tells; 0 for none."""
        if self._has_blob:
            return int.from_bytes(self.record[RECORD_HEAD_BYTES : RECORD_HEAD_BYTES + 8], "big")
        return 0

    @property
    def _has_blob(self) -> bool:
        return len(self.record) == RECORD_HEAD_BYTES + 20 and self.record[5] == 1
