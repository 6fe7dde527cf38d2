"""Data directories of the original darner, of Kestrel and of siberite, as these servers write them."""

import struct

from darner.journal import leveldb

CHUNK_BYTES = 1024
# No test fills one, so that no compaction is under way when a database with an order in Python is closed.
BUFFER_BYTES = 64 << 20


def order_of_the_original(one, other):
    """Sort keys as the original darner does: by the last byte, then by the number before it."""
    mine, its = ((key[8:], key[7::-1]) for key in (one, other))
    return (mine > its) - (mine < its)


def key_of_the_original(kind, id):
    return struct.pack("<QB", id, kind)


class OriginalWriter:
    """Writes a queue as the original darner does."""

    def __init__(self, directory, **options):
        self.directory = directory
        self.db = leveldb.DB(
            str(directory), create_if_missing=True, write_buffer_size=BUFFER_BYTES,
            comparator=order_of_the_original, comparator_name=b"queue::comparator", **options,
        )  # fmt: skip
        self.next_id = self.next_chunk = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.db.close()

    def begin(self, data):
        """Write the chunks of a large item, and return what is put for it then."""
        first = self.next_chunk
        for at in range(0, len(data), CHUNK_BYTES):
            self.db.put(key_of_the_original(2, self.next_chunk), data[at : at + CHUNK_BYTES])
            self.next_chunk += 1
        return struct.pack("<QQQ", first, self.next_chunk, len(data)) + b"\1\0"

    def put(self, value):
        self.db.put(key_of_the_original(1, self.next_id), value)
        self.next_id += 1

    def set(self, data):
        """Put an item, in chunks if it is large, and with another 0 behind a last one."""
        if len(data) > CHUNK_BYTES:
            self.put(self.begin(data))
        else:
            self.put(data + b"\0" if data.endswith(b"\0") else data)

    def remove(self, id):
        self.db.delete(key_of_the_original(1, id))


def write_original(directory, *items):
    """Write a queue of the original darner with these items."""
    directory.parent.mkdir(exist_ok=True)
    with OriginalWriter(directory) as queue:
        for data in items:
            queue.set(data)


def write_siberite(directory, *items, first=1, cursors=None, failed=None):
    """Write a queue of siberite with these items, the first of which has this id. `cursors`: the ids that
    they have read last; `failed`: what their readers have failed to handle."""
    directory.mkdir(parents=True)
    with leveldb.DB(str(directory / directory.name), create_if_missing=True) as db:
        for id, data in enumerate(items, first):
            db.put(id.to_bytes(8, "big"), data)
    with leveldb.DB(str(directory / "_.metadata"), create_if_missing=True) as db:
        for label, id in (cursors or {}).items():
            db.put(b"_c:" + label, id.to_bytes(8, "big"))
        for label, values in (failed or {}).items():
            for id, data in enumerate(values, 1):
                db.put(b"_r:" + label + b":" + id.to_bytes(8, "big"), data)


# The records of Kestrel's journals, by their names there.


def _block(head, data):
    return struct.pack("<i", len(head) + len(data)) + head + data


def add(data, expires_s=0):
    return b"\0" + _block(struct.pack("<i", expires_s), data)


def remove():
    return b"\1"


def addx(data, set_ms=1_300_000_000_000, expires_ms=0):
    return b"\2" + _block(struct.pack("<qq", set_ms, expires_ms), data)


def remove_tentative():
    return b"\3"


def save_xid(xid):
    return b"\4" + struct.pack("<i", xid)


def unremove(xid):
    return b"\5" + struct.pack("<i", xid)


def confirm_remove(xid):
    return b"\6" + struct.pack("<i", xid)


def add_xid(xid, data, set_ms=1_300_000_000_000, expires_ms=0):
    return b"\7" + struct.pack("<i", xid) + _block(struct.pack("<qq", set_ms, expires_ms), data)


def continue_(xid, data, set_ms=1_300_000_000_000, expires_ms=0):
    return b"\x08" + struct.pack("<i", xid) + _block(struct.pack("<qq", set_ms, expires_ms), data)


def remove_xid(xid):
    return b"\t" + struct.pack("<i", xid)
