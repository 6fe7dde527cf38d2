# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, auto_pickle=False
"""What is stored, compiled: items, keys and records to bytes and back, the frames of the log, the system calls
that memory maps need, the clocks, and how long things take by them.

No queue, no file and no socket in here. `darner.journal` says what the records mean.
"""

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_SetFromErrno
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EFAULT, ENOSPC, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec

import os

from darner.errors import NewerFormatError

__all__ = [
    "CHUNK_BYTES", "Change", "HISTOGRAM_BOUNDS_S", "Histogram", "ITEM_BYTES", "Item", "RECORD_HEAD_BYTES", "Scanned", "Segment", "SegmentFormatError", "State", "blob_of", "bus_errors",
    "check_chunk", "checksum", "copy_record", "decode_chunk", "decode_ids", "decode_item", "decode_state", "encode_chunk", "encode_ids", "encode_item",
    "encode_state", "guard_memory", "item_key", "marker_key", "monotonic_ns", "new_item", "now_ms", "pack_numbers", "populate", "read_segment", "segment_head", "share_heap", "since_boot_ms", "trim_memory",
]

cdef enum:
    # What an item costs in memory besides its bytes.
    _ITEM_BYTES = 150
    # The largest chunk: one is read as a whole, and no record may have a reader take more memory.
    _MAX_CHUNK = 16777216
    # The largest item: larger than any file, and the sizes of many can be added.
    _MAX_SIZE = 9007199254740992

CHUNK_BYTES = _CHUNK
ITEM_BYTES = _ITEM_BYTES
RECORD_HEAD_BYTES = _RECORD_HEAD


# Keys and records. All numbers are big-endian, so that LevelDB's bytewise order is their order. docs/design.md
# describes each record.

cdef enum:
    _RECORD_VERSION = 1
    # Version 2 has stamps (timeline.py) for an item's times; version 1 had dates, which are stamps, too.
    _ITEM_VERSION = 2
    _INLINE = 0
    _CHUNKED = 1
    _CRC = 4
    _ITEM_HEADER = 24
    _BLOB_HEADER = 20
    _STATE = 74


cdef inline void put_u32(char* out, uint32_t n) noexcept:
    cdef int i
    for i in range(4):
        out[i] = <char>(n >> (24 - 8 * i))


cdef inline void put_u64(char* out, uint64_t n) noexcept:
    cdef int i
    for i in range(8):
        out[i] = <char>(n >> (56 - 8 * i))


cdef inline uint32_t get_u32(const char* at) noexcept:
    cdef uint32_t n = 0
    cdef int i
    for i in range(4):
        n = n << 8 | <uint8_t>at[i]
    return n


cdef inline uint64_t get_u64(const char* at) noexcept:
    cdef uint64_t n = 0
    cdef int i
    for i in range(8):
        n = n << 8 | <uint8_t>at[i]
    return n


# CRC-32C, by the processor's instruction; where there is none, eight bytes at a time by tables ("slicing by 8"). In C,
# for calling a checksum through Python takes several times as long as computing that of a small item.

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    static uint32_t crc_table[8][256];

    static uint32_t crc_by_table(uint32_t crc, const unsigned char* at, size_t size) {
        for (; size >= 8; at += 8, size -= 8) {
            uint32_t low = crc ^ ((uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24);
            crc = crc_table[7][low & 255] ^ crc_table[6][low >> 8 & 255] ^ crc_table[5][low >> 16 & 255]
                ^ crc_table[4][low >> 24] ^ crc_table[3][at[4]] ^ crc_table[2][at[5]] ^ crc_table[1][at[6]]
                ^ crc_table[0][at[7]];
        }
        for (; size; at++, size--)
            crc = crc_table[0][(crc ^ *at) & 255] ^ crc >> 8;
        return crc;
    }

    static uint32_t (*crc_of)(uint32_t, const unsigned char*, size_t) = crc_by_table;

    #if defined(__x86_64__) && defined(__GNUC__)
    __attribute__((target("sse4.2")))
    static uint32_t crc_by_instruction(uint32_t crc, const unsigned char* at, size_t size) {
        uint64_t wide = crc, word;
        for (; size >= 8; at += 8, size -= 8) {
            memcpy(&word, at, 8);
            wide = __builtin_ia32_crc32di(wide, word);
        }
        for (; size; at++, size--)
            wide = __builtin_ia32_crc32qi((uint32_t)wide, *at);
        return (uint32_t)wide;
    }
    #endif

    static void crc_begin(int by_table) {
        for (uint32_t n = 0; n < 256; n++) {
            uint32_t c = n;
            for (int k = 0; k < 8; k++)
                c = c & 1 ? 0x82f63b78 ^ c >> 1 : c >> 1;
            crc_table[0][n] = c;
        }
        for (int n = 0; n < 256; n++)
            for (int k = 1; k < 8; k++)
                crc_table[k][n] = crc_table[0][crc_table[k - 1][n] & 255] ^ crc_table[k - 1][n] >> 8;
        crc_of = crc_by_table;
    #if defined(__x86_64__) && defined(__GNUC__)
        if (!by_table && __builtin_cpu_supports("sse4.2"))
            crc_of = crc_by_instruction;
    #endif
    }
    """
    void crc_begin(bint by_table)
    uint32_t crc_of(uint32_t crc, const unsigned char* at, size_t size) noexcept


crc_begin(False)


cdef inline uint32_t crc32c(const char* data, Py_ssize_t size, uint32_t crc) noexcept:
    return ~crc_of(~crc, <const unsigned char*>data, size)


cdef inline uint32_t record_crc(const char* record, Py_ssize_t size, uint64_t id) noexcept:
    """Return the checksum of a record. It includes the item's id, so that a record under another's key is recognized;
    and the size, for a CRC of 0 stays 0 however many zeros follow."""
    return crc32c(record + _CRC, size - _CRC, <uint32_t>(id ^ <uint64_t>size))


def checksum(bytes data not None, uint32_t seed=0, bint by_table=False):
    """Return the CRC-32C of `data`, as records have it; `by_table` without the processor's instruction."""
    crc_begin(by_table)
    cdef uint32_t crc = crc32c(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), seed)
    crc_begin(False)
    return crc


def item_key(uint64_t id):
    """Return the key of an item's record: `i` and its id."""
    cdef char key[9]
    key[0] = c"i"
    put_u64(key + 1, id)
    return PyBytes_FromStringAndSize(key, 9)


def marker_key(uint64_t blob):
    """Return the key of the marker of a blob that belongs to no item: `u` and its id."""
    cdef char key[9]
    key[0] = c"u"
    put_u64(key + 1, blob)
    return PyBytes_FromStringAndSize(key, 9)


@cython.final
@cython.no_gc
@cython.freelist(1024)
cdef class Item:
    """An item of a queue.

    Its bytes are in `record`, behind the record's head. If that is None, they are in the file of `blob`; those of an
    item that is reserved, or has returned to its queue, may be in the journal alone.
    """

    def __init__(self, uint64_t id, uint32_t flags, uint64_t expires_ms, uint64_t enqueued_ms, bytes data,
                 uint64_t blob=0, uint64_t size=0, uint32_t chunk_bytes=0, uint16_t attempts=0):
        self.id = id
        self.flags = flags
        self.expires_ms = expires_ms
        self.enqueued_ms = enqueued_ms
        self.blob = blob
        self.size = size
        if data is not None:
            self.size = PyBytes_GET_SIZE(data)
            self.record = PyBytes_FromStringAndSize(NULL, _RECORD_HEAD + PyBytes_GET_SIZE(data))
            memcpy(PyBytes_AS_STRING(self.record) + _RECORD_HEAD, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        self.memory_bytes = _ITEM_BYTES + (0 if data is None else self.size)
        self.chunk_bytes = chunk_bytes
        self.attempts = attempts

    cpdef Item another(self):
        """Return a copy of the item that shares its bytes."""
        cdef Item item = Item.__new__(Item)
        item.id = self.id
        item.flags = self.flags
        item.expires_ms = self.expires_ms
        item.enqueued_ms = self.enqueued_ms
        item.attempts = self.attempts
        item.size = self.size
        item.memory_bytes = self.memory_bytes
        item.blob = self.blob
        item.chunk_bytes = self.chunk_bytes
        item.record = self.record
        return item

    cpdef forget_data(self):
        """Free the bytes, which can be read from the journal again."""
        self.record = None
        self.memory_bytes = _ITEM_BYTES

    @property
    def token(self):
        """What names one delivery of the item: how often it has come back, times 2^48, and its id."""
        return token_of(self)

    @property
    def data(self):
        """The item's bytes; None if they are not in memory."""
        return None if self.record is None else self.record[_RECORD_HEAD:]

    @property
    def chunks(self):
        """The number of chunks that hold the item's bytes."""
        if self.blob == 0 or self.chunk_bytes == 0:
            return 0
        return self.size // self.chunk_bytes + (self.size % self.chunk_bytes != 0)


cpdef bytes copy_record(bytes record):
    """Return a copy of a record for another item: `encode_item` writes into the record of each."""
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(record), PyBytes_GET_SIZE(record))


cpdef Item new_item(bytes record, uint32_t flags, uint64_t expires_ms, uint64_t enqueued_ms):
    """Return an item that is not in a queue yet, with the `record` that the parser made for a SET."""
    cdef Item item = Item.__new__(Item)
    item.record = record
    item.size = PyBytes_GET_SIZE(record) - _RECORD_HEAD
    item.memory_bytes = _ITEM_BYTES + item.size
    item.flags = flags
    item.expires_ms = expires_ms
    item.enqueued_ms = enqueued_ms
    return item


cpdef bytes encode_item(Item item):
    """Return the record of an item: checksum, header, then its bytes or the blob that has them.

    The head of `item.record` is written in place: nobody reads it before this.
    """
    cdef bytes record = item.record
    cdef char* out
    if record is None:
        record = PyBytes_FromStringAndSize(NULL, _RECORD_HEAD + _BLOB_HEADER)
        out = PyBytes_AS_STRING(record) + _RECORD_HEAD
        put_u64(out, item.blob)
        put_u64(out + 8, item.size)
        put_u32(out + 16, item.chunk_bytes)
    out = PyBytes_AS_STRING(record)
    out[_CRC] = _ITEM_VERSION
    out[_CRC + 1] = _CHUNKED if item.record is None else _INLINE
    out[_CRC + 2] = <char>(item.attempts >> 8)
    out[_CRC + 3] = <char>item.attempts
    put_u32(out + _CRC + 4, item.flags)
    put_u64(out + _CRC + 8, item.expires_ms)
    put_u64(out + _CRC + 16, item.enqueued_ms)
    put_u32(out, record_crc(out, PyBytes_GET_SIZE(record), item.id))
    return record


cdef inline bint is_too_large(uint64_t number) noexcept:
    """Return whether a number is larger than any of a record, so that the sum of two fits into 64 bits."""
    return number >> 62 != 0


cdef wrong_version(what, uint8_t version, int known):
    if version > known:
        return NewerFormatError(f"{what} has record version {version}, this darner knows {known}")
    return ValueError(f"{what} has record version {version}, which there is not")


def decode_item(bytes key not None, bytes record not None):
    """Return the item in a record. Raises NewerFormatError if a later version of darner wrote it, ValueError if it is
    damaged or has numbers that no item has."""
    if PyBytes_GET_SIZE(key) != 9:
        raise ValueError("key of an item cut short")
    return item_of(get_u64(PyBytes_AS_STRING(key) + 1), record)


cdef Item item_of(uint64_t id, bytes record):
    cdef:
        const char* at = PyBytes_AS_STRING(record)
        Py_ssize_t size = PyBytes_GET_SIZE(record) - _RECORD_HEAD
        Item item
    if PyBytes_GET_SIZE(record) <= _CRC:
        raise ValueError("item record cut short")
    if get_u32(at) != record_crc(at, PyBytes_GET_SIZE(record), id):
        raise ValueError(f"item {id} fails its checksum")
    at += _CRC
    if at[0] != _ITEM_VERSION and at[0] != _RECORD_VERSION:
        raise wrong_version(f"item {id}", <uint8_t>at[0], _ITEM_VERSION)
    if size < 0:
        raise ValueError("item record cut short")
    if at[1] != _CHUNKED and at[1] != _INLINE:
        raise NewerFormatError(f"item {id} is of kind {<int><uint8_t>at[1]}, which this darner does not know")
    item = Item.__new__(Item)
    item.id = id
    item.attempts = <uint16_t>(<uint8_t>at[2] << 8 | <uint8_t>at[3])
    item.flags = get_u32(at + 4)
    item.expires_ms = get_u64(at + 8)
    item.enqueued_ms = get_u64(at + 16)
    item.memory_bytes = _ITEM_BYTES
    if id == 0 or is_too_large(id | item.expires_ms | item.enqueued_ms):
        raise ValueError(f"item {id} has numbers that no item has")
    if at[1] == _CHUNKED:
        if size != _BLOB_HEADER:
            raise ValueError(f"item {id} is chunked, and does not say where")
        at += _ITEM_HEADER
        item.blob = get_u64(at)
        item.size = get_u64(at + 8)
        item.chunk_bytes = get_u32(at + 16)
        if (item.blob == 0 or is_too_large(item.blob) or item.size > _MAX_SIZE
                or not 0 < item.chunk_bytes <= _MAX_CHUNK):
            raise ValueError(f"item {id} is chunked, and has numbers that no such item has")
    else:
        item.record = record
        item.size = size
        item.memory_bytes += size
    return item


def blob_of(bytes key not None, bytes record not None):
    """Return the id of the blob that an item's record refers to, or 0. Raises ValueError if such a record is damaged."""
    if PyBytes_GET_SIZE(record) < _CRC + 2 or PyBytes_AS_STRING(record)[_CRC + 1] != _CHUNKED:
        return 0
    return decode_item(key, record).blob


def encode_chunk(bytes data not None):
    """Return the record of a chunk: checksum, then its bytes."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
    cdef bytes record = PyBytes_FromStringAndSize(NULL, _CRC + size)
    cdef char* out = PyBytes_AS_STRING(record)
    memcpy(out + _CRC, PyBytes_AS_STRING(data), size)
    put_u32(out, record_crc(out, _CRC + size, 0))
    return record


def decode_chunk(bytes record not None):
    """Return the bytes of a chunk. Raises ValueError if they fail the checksum."""
    check_chunk(record)
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(record) + _CRC, PyBytes_GET_SIZE(record) - _CRC)


cpdef check_chunk(bytes record):
    """Raise ValueError if the bytes of a chunk fail the checksum."""
    cdef const char* at = PyBytes_AS_STRING(record)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(record)
    if size < _CRC:
        raise ValueError("chunk cut short")
    if get_u32(at) != record_crc(at, size, 0):
        raise ValueError("chunk fails its checksum")


@cython.final
@cython.no_gc
cdef class State:
    """The state of a journal: what a start must know without reading its items. Written with every batch.

    `life`: a number that no other journal has had, which tells a queue from an earlier one of the same name.
    `change`: how many changes the journal has seen. `floor`: no item below it is live but those listed as kept.
    `trimmed`: no record is left to delete below it. `next_id`, `next_blob`: the next ids to give out. `items`,
    `bytes`: how much is live, reserved items included. `created_ms`: when the queue was made.
    """

    def __init__(self, uint64_t created_ms, uint64_t life):
        self.floor = self.trimmed = self.next_id = self.next_blob = 1
        self.created_ms = created_ms
        self.life = life

    cpdef void add(self, Item item):
        """Count a new item, whose id is the next one."""
        self.next_id += 1
        self.items += 1
        self.bytes += item.size

    cpdef bint drop(self, uint64_t id, uint64_t size):
        """Count an item out; returns whether it was the one at the floor, which then moves up. Raises ValueError if more
        would be counted out than there are."""
        if self.items == 0 or self.bytes < size:
            raise ValueError(f"item {id} is one more than are counted")
        self.items -= 1
        self.bytes -= size
        if id != self.floor:
            return False
        self.floor += 1
        return True

    cpdef State copy(self):
        """Return a copy."""
        cdef State state = State.__new__(State)
        state.deleted = self.deleted
        state.change = self.change
        state.floor = self.floor
        state.trimmed = self.trimmed
        state.next_id = self.next_id
        state.next_blob = self.next_blob
        state.items = self.items
        state.bytes = self.bytes
        state.created_ms = self.created_ms
        state.life = self.life
        return state


def encode_state(State state not None):
    """Return the record of a journal's state."""
    cdef char out[_STATE]
    cdef char* at = out
    at[0] = _RECORD_VERSION
    at[1] = state.deleted
    put_u64(at + 2, state.change)
    put_u64(at + 10, state.floor)
    put_u64(at + 18, state.trimmed)
    put_u64(at + 26, state.next_id)
    put_u64(at + 34, state.next_blob)
    put_u64(at + 42, state.items)
    put_u64(at + 50, state.bytes)
    put_u64(at + 58, state.created_ms)
    put_u64(at + 66, state.life)
    return encode_chunk(PyBytes_FromStringAndSize(at, _STATE))


def decode_state(bytes record not None):
    """Return the state in a record. Raises NewerFormatError if a later version of darner wrote it, ValueError if it is
    damaged or has numbers that no state has."""
    cdef bytes body
    cdef const char* at
    cdef State state = State.__new__(State)
    if PyBytes_GET_SIZE(record) <= _CRC:
        raise ValueError("state record has the wrong length")
    body = decode_chunk(record)
    at = PyBytes_AS_STRING(body)
    if at[0] != _RECORD_VERSION:
        raise wrong_version("state", <uint8_t>at[0], _RECORD_VERSION)
    if PyBytes_GET_SIZE(body) != _STATE:
        raise ValueError("state record has the wrong length")
    state.deleted = at[1]
    state.change = get_u64(at + 2)
    state.floor = get_u64(at + 10)
    state.trimmed = get_u64(at + 18)
    state.next_id = get_u64(at + 26)
    state.next_blob = get_u64(at + 34)
    state.items = get_u64(at + 42)
    state.bytes = get_u64(at + 50)
    state.created_ms = get_u64(at + 58)
    state.life = get_u64(at + 66)
    if not 0 < state.trimmed <= state.floor <= state.next_id or state.next_blob == 0 or is_too_large(
        state.change | state.next_id | state.next_blob | state.items | state.bytes | state.created_ms
    ):
        raise ValueError("state has numbers that no state has")
    return state


def pack_numbers(list numbers not None, bytes head not None=b""):
    """Return `head` and numbers of 8 bytes each, as changes in the log have them."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(head)
    cdef bytes packed = PyBytes_FromStringAndSize(NULL, size + 8 * len(numbers))
    cdef char* out = PyBytes_AS_STRING(packed)
    memcpy(out, PyBytes_AS_STRING(head), size)
    out += size
    for number in numbers:
        put_u64(out, number)
        out += 8
    return packed


def encode_ids(list ids not None):
    """Return the record of a list of ids."""
    return encode_chunk(pack_numbers(ids))


def decode_ids(bytes record not None):
    """Return the ids in a record. Raises ValueError if the record is damaged or has numbers that are no ids."""
    cdef bytes body = decode_chunk(record)
    cdef const char* at = PyBytes_AS_STRING(body)
    cdef Py_ssize_t i, size = PyBytes_GET_SIZE(body)
    if size % 8 != 0:
        raise ValueError("list of ids cut short")
    for i in range(0, size, 8):
        if is_too_large(get_u64(at + i)):
            raise ValueError("list of ids has numbers that are none")
    return [get_u64(at + i) for i in range(0, size, 8)]


# The write-ahead log: segments of frames, one frame for each change. wal.py says how segments are used.

cpdef enum Change:
    """The kinds of frames, each with its payload; numbers have 64 bits."""
    ENTER = 1       # life, then the name: the frames of this `journal` that follow concern that queue
    PUT = 2         # id, then the item's record
    DROP = 3        # id, size, blob
    REWRITE = 4     # as PUT, of a live item, for its attempts; only an earlier version wrote it
    DISCARD = 5     # id and size of each item that stays
    BLOB = 6        # blob
    RETIRE = 7
    REVIVE = 8      # when, in ms
    DELAY = 9       # when it is due, in ms, id, then the item's record: a delayed item is added
    JOIN = 10       # the first two of a DELAY, and when, in ms: the delayed item joins the queue as its last
    END = 11        # nothing follows in this segment
    CURSOR = 12     # the size of its label, in a byte, the label, then its position; none if the cursor is deleted
    COMMIT = 13     # the group of frames before it is whole
    LOST = 14       # damage: the items from the first id up to the second are lost; then how many items are left, and
                    # their bytes
    LOST_DELAYED = 15   # the first two of a DELAY: that item is lost; then as LOST, of the delayed items
    ATTEMPTS = 16   # id, and how often this item has returned to the queue
    DEFER = 17      # the first two of a DELAY, the id of a live item, then the record: that item is a delayed one now
    ONCE = 18       # the id of a set is remembered: generation, when it came, the hash of the id; then the kind, in a
                    # byte, and the payload of the PUT or DELAY that is made with it
    CONFIGURE = 19  # the settings that were made at run time, all of them; none if they are forgotten


cdef enum:
    # The head of a segment: magic, number, marker, number of the segment before it and how many bytes of that are
    # valid, size of the segment (64 bits each), checksum. A copy lies at the end of the segment.
    _SEGMENT_HEAD = 64
    _SEGMENT_HEAD_CHECKED = 48
    # The head of a frame: marker (64 bits), checksum, payload's size (32 bits each), kind (8), journal (32),
    # change (64).
    _FRAME_HEAD = 29
    _MARKER = 8
    # A record has a checksum of its own: that of the frame includes just the id and that checksum.
    _CHECKED_OF_RECORD = 12
    # A bit of a frame's kind: the frame is part of a group, and valid only if a COMMIT follows.
    _IN_GROUP = 0x80
    # Version 1, written by darner 1.0.0 before its release: magic and number, then frames without a marker.
    _SEGMENT_HEAD_1 = 16
    _FRAME_HEAD_1 = 21

cdef bytes SEGMENT_MAGIC = b"darner 2"
cdef bytes SEGMENT_MAGIC_1 = b"darner 1"


cdef extern from *:
    """
    #include <signal.h>
    #include <stdint.h>
    #include <sys/mman.h>
    #include <unistd.h>

    static volatile sig_atomic_t darner_bus_errors = 0;
    static struct sigaction darner_bus_before;
    static long darner_page_bytes;

    static void darner_on_bus_error(int number, siginfo_t* info, void* context)
    {
        /* The disk has no room for the page, or the file was truncated, or cannot be read. A page of memory
           takes its place, so that the copy goes on; whoever copies checks the count afterwards. */
        if (info->si_code == BUS_ADRERR) {
            void* page = (void*)((uintptr_t)info->si_addr & ~((uintptr_t)darner_page_bytes - 1));
            if (mmap(page, darner_page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
                     -1, 0) != MAP_FAILED) {
                darner_bus_errors++;
                return;
            }
        }
        sigaction(SIGBUS, &darner_bus_before, NULL);  /* the signal comes again, with its former effect */
    }

    static void darner_guard_memory(void)
    {
        struct sigaction action = {0};
        darner_page_bytes = sysconf(_SC_PAGESIZE);
        action.sa_sigaction = darner_on_bus_error;
        action.sa_flags = SA_SIGINFO;
        sigemptyset(&action.sa_mask);
        sigaction(SIGBUS, &action, &darner_bus_before);
    }
    """
    int darner_bus_errors
    void darner_guard_memory()
    int c_madvise "madvise"(void* memory, size_t size, int advice) nogil


def guard_memory():
    """Catch SIGBUS, the signal by which a process would end that writes to mapped memory for which the disk has no
    room, or whose file was truncated. To be called once, before anything is mapped."""
    darner_guard_memory()


def bus_errors():
    """Return how many pages of mapped files could not be written or read since `guard_memory`. What was read from
    such a page is zeros, what was written to it is lost."""
    return darner_bus_errors


cdef inline uint32_t frame_crc(const char* frame, Py_ssize_t size, uint64_t number) noexcept:
    """Return the checksum of a frame, behind its marker. It includes the segment's number."""
    cdef int kind = frame[8] & (_IN_GROUP - 1)
    if kind == PUT or kind == REWRITE:
        size = _CHECKED_OF_RECORD
    return crc32c(frame + 4, _FRAME_HEAD_1 - 4 + size, <uint32_t>number)


# From Linux 5.14 on, and missing in older headers.
cdef enum:
    _MADV_POPULATE_WRITE = 23


def populate(memory not None):
    """Make all pages of mapped memory, a writable buffer, present and writable.

    That takes a third of the time of as many page faults. Where the system cannot do so, nothing is done. Unlike
    mmap.madvise this releases the GIL. Raises OSError if a page cannot be written: the disk has no room for it, or
    the file was truncated."""
    cdef Py_buffer view
    cdef int code = 0
    PyObject_GetBuffer(memory, &view, PyBUF_WRITABLE)
    with nogil:
        if c_madvise(view.buf, view.len, _MADV_POPULATE_WRITE) != 0:
            code = errno
    PyBuffer_Release(&view)
    if code == EFAULT:
        raise OSError(ENOSPC, os.strerror(ENOSPC))


cdef extern from *:
    """
    #include <time.h>
    #ifndef CLOCK_BOOTTIME
    #define CLOCK_BOOTTIME CLOCK_MONOTONIC
    #endif
    """
    int CLOCK_BOOTTIME


cpdef int64_t now_ms() except? -1:
    """Return the time of the system's clock, in ms of the Unix epoch."""
    cdef timespec now
    if clock_gettime(CLOCK_REALTIME, &now) != 0:
        PyErr_SetFromErrno(OSError)
    return <int64_t>now.tv_sec * 1000 + now.tv_nsec // 1_000_000


cpdef int64_t since_boot_ms() except -1:
    """Return how many milliseconds the machine has been up, asleep or awake. In C, for each request calls it, and
    through `time` it takes twice as long."""
    cdef timespec now
    if clock_gettime(CLOCK_BOOTTIME, &now) != 0:
        PyErr_SetFromErrno(OSError)
    return <int64_t>now.tv_sec * 1000 + now.tv_nsec // 1_000_000


cpdef uint64_t monotonic_ns() noexcept:
    """Return nanoseconds of a clock that is never set, to tell how long something takes."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec


# From a reply that is at hand to a disk that hangs.
HISTOGRAM_BOUNDS_S = (
    0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)
cdef uint64_t[_BOUNDS] BOUNDS_NS = [
    25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000, 25_000_000, 50_000_000,
    100_000_000, 250_000_000, 500_000_000, 1_000_000_000, 2_500_000_000, 5_000_000_000, 10_000_000_000,
]


cdef class Histogram:
    """How often something took how long. In C, for replies are counted in one."""

    cpdef void observe(self, uint64_t ns) noexcept:
        """Count one that took so many nanoseconds."""
        cdef int at = 0
        while at < _BOUNDS and ns > BOUNDS_NS[at]:
            at += 1
        self._counts[at] += 1
        self.total_ns += ns

    @property
    def counts(self):
        """How many took at most as long as each of `HISTOGRAM_BOUNDS_S` and longer than the one before; then how many
        took longer than the last."""
        return [self._counts[at] for at in range(_BOUNDS + 1)]


cdef extern from *:
    """
    #include <stdlib.h>
    #ifdef __GLIBC__
    #include <malloc.h>
    #else
    enum { M_ARENA_MAX };
    static int mallopt(int option, int value) { return 0; }
    static int malloc_trim(size_t pad) { return 0; }
    #endif
    """
    int M_ARENA_MAX
    int mallopt(int option, int value)
    int malloc_trim(size_t pad) nogil


def share_heap():
    """Have all threads allocate from one heap, so that each can use what another has freed; glibc has a heap for
    each. To be called before any thread is begun."""
    mallopt(M_ARENA_MAX, 1)


def trim_memory():
    """Return freed memory to the system: glibc keeps it where memory behind it is still in use."""
    with nogil:
        malloc_trim(0)


def segment_head(uint64_t number, uint64_t marker, uint64_t previous, uint64_t previous_bytes, uint64_t size):
    """Return the head of a segment of `size` bytes; number 0 is that of one that is not begun. Of `previous`, the
    segment before it, the first `previous_bytes` are valid."""
    cdef char out[_SEGMENT_HEAD]
    memset(out, 0, _SEGMENT_HEAD)
    memcpy(out, PyBytes_AS_STRING(SEGMENT_MAGIC), 8)
    put_u64(out + 8, number)
    put_u64(out + 16, marker)
    put_u64(out + 24, previous)
    put_u64(out + 32, previous_bytes)
    put_u64(out + 40, size)
    put_u32(out + _SEGMENT_HEAD_CHECKED, crc32c(out, _SEGMENT_HEAD_CHECKED, 0))
    return PyBytes_FromStringAndSize(out, _SEGMENT_HEAD)


@cython.final
cdef class Segment:
    """The segment of the log that is being written, in mapped memory.

    `begin` has it write to another piece of memory. The methods that write a frame return whether there was room for
    it; `journal` numbers the journals of this segment, `change` the changes of the journal. `refusal`: the error for
    which no items are stored, or None; removals are logged as long as there is room.

    Each frame begins with the segment's marker, a random number. So neither bytes of an item, which a client chooses,
    nor bytes that an earlier use of the file left behind can be taken for a frame.
    """

    def __dealloc__(self):
        if self._memory != NULL:
            PyBuffer_Release(&self._view)

    def begin(self, memory, uint64_t number, uint64_t marker, uint64_t previous=0, uint64_t previous_bytes=0):
        """Write the segment of this number to `memory`, a writable buffer, from its start; see `segment_head`."""
        self.end()
        PyObject_GetBuffer(memory, &self._view, PyBUF_WRITABLE)
        self._memory = <char*>self._view.buf
        self.number = number
        self.marker = marker
        self._bus_errors = darner_bus_errors
        self.is_lost = False
        cdef bytes head = segment_head(number, marker, previous, previous_bytes, self._view.len)
        # the copy first: until the head is at the start, too, the segment is not begun
        memcpy(self._memory + self._view.len - _SEGMENT_HEAD, PyBytes_AS_STRING(head), _SEGMENT_HEAD)
        memcpy(self._memory, PyBytes_AS_STRING(head), _SEGMENT_HEAD)
        # there must always be room for the COMMIT and the END
        self._size = self._view.len - _SEGMENT_HEAD - 2 * _FRAME_HEAD
        self.used_bytes = _SEGMENT_HEAD

    def end(self):
        """End the segment, and release its memory."""
        if self._memory == NULL:
            return
        if not self.is_lost:
            self._size = self._view.len - _SEGMENT_HEAD
            kind_flag = self._kind_flag
            self._kind_flag = 0  # the END is in no group, though one may go on in the next segment
            self.write(END, 0, 0, b"")
            self._kind_flag = kind_flag
        PyBuffer_Release(&self._view)
        self._memory = NULL
        self._size = self.used_bytes = 0

    @property
    def room_bytes(self):
        """The number of bytes that are left for frames."""
        return self._size - self.used_bytes

    def begin_group(self):
        """Begin a group: a start takes all frames from here to `end_group` or none, whichever segments they are in."""
        self._kind_flag = _IN_GROUP
        self.in_group = True

    def end_group(self):
        """End the group with a COMMIT, for which there is always room; returns False if the segment is lost."""
        self._kind_flag = 0
        self.in_group = False
        if self.is_lost:
            return False
        self._size += _FRAME_HEAD
        written = self.write(COMMIT, 0, 0, b"")
        if written:
            self._size -= _FRAME_HEAD
        return written

    cdef char* frame(self, Py_ssize_t size) noexcept:
        """Return where to write the payload of a frame; NULL if there is no room."""
        if self.used_bytes + _FRAME_HEAD + size > self._size:
            return NULL
        return self._memory + self.used_bytes + _FRAME_HEAD

    cdef bint close_frame(self, char* payload, Py_ssize_t size, int kind, uint32_t journal, uint64_t change) noexcept:
        cdef char* at = payload - _FRAME_HEAD + _MARKER
        put_u32(at + 4, <uint32_t>size)
        at[8] = <char>(kind | self._kind_flag)
        put_u32(at + 9, journal)
        put_u64(at + 13, change)
        put_u32(at, frame_crc(at, size, self.number))
        put_u64(at - _MARKER, self.marker)
        if darner_bus_errors != self._bus_errors:
            # the page may be another one; but it is always right to go on in the next segment
            self.is_lost = True
            self._size = 0
            return False
        self.used_bytes += _FRAME_HEAD + size
        return True

    cdef bint write(self, int kind, uint32_t journal, uint64_t change, bytes payload):
        cdef Py_ssize_t size = PyBytes_GET_SIZE(payload)
        cdef char* at = self.frame(size)
        if at == NULL:
            return False
        memcpy(at, PyBytes_AS_STRING(payload), size)
        return self.close_frame(at, size, kind, journal, change)

    cpdef bint append(self, int kind, uint32_t journal, uint64_t change, bytes payload):
        """Write a frame of any kind."""
        return self.write(kind, journal, change, payload)

    cpdef bint put(self, int kind, uint32_t journal, uint64_t change, Item item):
        """Write a PUT."""
        cdef bytes record = encode_item(item)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(record)
        cdef char* at = self.frame(8 + size)
        if at == NULL:
            return False
        put_u64(at, item.id)
        memcpy(at + 8, PyBytes_AS_STRING(record), size)
        return self.close_frame(at, 8 + size, kind, journal, change)

    cpdef bint drop(self, uint32_t journal, uint64_t change, uint64_t id, uint64_t size, uint64_t blob):
        """Write a DROP."""
        cdef char* at = self.frame(24)
        if at == NULL:
            return False
        put_u64(at, id)
        put_u64(at + 8, size)
        put_u64(at + 16, blob)
        return self.close_frame(at, 24, DROP, journal, change)


class SegmentFormatError(ValueError):
    """The segment has a format that this version of darner does not know."""


cdef class Scanned:
    """The contents of a segment: see `read_segment`."""

    cdef:
        readonly uint64_t number
        readonly uint64_t marker
        readonly uint64_t previous
        readonly uint64_t previous_bytes
        readonly list frames
        readonly Py_ssize_t used_bytes
        readonly Py_ssize_t whole_bytes
        readonly Py_ssize_t open_frames
        readonly bint ended
        readonly bint commits
        readonly list behind
        readonly str damage


cdef extern from "<string.h>":
    void* memmem(const void* haystack, size_t size, const void* needle, size_t needle_size)


cdef const char* head_of(bytes memory):
    """Return the head of a segment, or its copy; NULL if neither is right."""
    cdef:
        const char* start = PyBytes_AS_STRING(memory)
        Py_ssize_t size = PyBytes_GET_SIZE(memory)
        const char* at
        int copy
    if size < 2 * _SEGMENT_HEAD:
        return NULL
    for copy in range(2):
        at = start + (size - _SEGMENT_HEAD if copy else 0)
        if memcmp(at, PyBytes_AS_STRING(SEGMENT_MAGIC), 8) == 0 and get_u32(
            at + _SEGMENT_HEAD_CHECKED
        ) == crc32c(at, _SEGMENT_HEAD_CHECKED, 0):
            return at
    return NULL


cdef Py_ssize_t frame_at(const char* at, Py_ssize_t left, Scanned scanned, Py_ssize_t marker):
    """Return the size of the payload of the frame at `at`; -1 if there is no whole frame. Markers have `marker`
    bytes."""
    cdef Py_ssize_t size
    cdef int kind
    if left < marker + _FRAME_HEAD_1 or (marker and get_u64(at) != scanned.marker):
        return -1
    at += marker
    size = get_u32(at + 4)
    kind = at[8] & (_IN_GROUP - 1)
    if size > left - marker - _FRAME_HEAD_1:
        return -1
    if (kind == PUT or kind == REWRITE) and size < 8 + _RECORD_HEAD:
        return -1
    if get_u32(at) != frame_crc(at, size, scanned.number):
        return -1
    # only the checksum counts here: its queue finds out whether the item has a known format
    if kind == PUT or kind == REWRITE:
        at += _FRAME_HEAD_1
        if get_u32(at + 8) != record_crc(at + 8, size - 8, get_u64(at)):
            return -1
    return size


cdef tuple frame_of(const char* at, Py_ssize_t size):
    return (
        at[8] & (_IN_GROUP - 1), get_u32(at + 9), get_u64(at + 13), PyBytes_FromStringAndSize(at + _FRAME_HEAD_1, size)
    )


def read_segment(bytes memory not None):
    """Return the contents of a segment, as far as it is whole. Raises SegmentFormatError if it is of a later version.

    `number`: 0 if the segment was never begun, or is no segment. `marker`, `previous`, `previous_bytes`: see
    `segment_head`. `damage`: what is wrong with the head and the size, or "".
    `frames`: tuples of kind, journal, change and payload, up to the first frame that is not whole; that one begins at
    `used_bytes`. `ended`: whether it is the END. `behind`: the whole frames behind it.
    `open_frames`: how many frames at the end are of a group without its COMMIT; that group begins at `whole_bytes`.
    `commits`: whether a group is whole that the segment before this one has left open.
    """
    cdef:
        Scanned scanned = Scanned.__new__(Scanned)
        const char* start = PyBytes_AS_STRING(memory)
        Py_ssize_t total = PyBytes_GET_SIZE(memory), at, stop = total, size, marker = _MARKER
        const char* head
        const char* found
        char pattern[8]
        int kind
    scanned.frames, scanned.behind, scanned.damage = [], [], ""
    if total >= 8 and memcmp(start, b"darner ", 7) == 0 and start[7] > SEGMENT_MAGIC[7] and start[7] <= c"9":
        raise SegmentFormatError(f"it is of version {chr(start[7])}")
    if (total >= _SEGMENT_HEAD_1 and memcmp(start, PyBytes_AS_STRING(SEGMENT_MAGIC_1), 8) == 0
            and not is_too_large(get_u64(start + 8))):
        scanned.number = get_u64(start + 8)
        at, marker = _SEGMENT_HEAD_1, 0
    else:
        head = head_of(memory)
        if head == NULL or is_too_large(get_u64(head + 8)):
            scanned.damage = "is empty" if memory.count(0) == total else "has no head"
            return scanned
        scanned.number = get_u64(head + 8)
        scanned.marker = get_u64(head + 16)
        scanned.previous = get_u64(head + 24)
        scanned.previous_bytes = get_u64(head + 32)
        at = _SEGMENT_HEAD
        if <Py_ssize_t>get_u64(head + 40) != total:
            scanned.damage = "is cut short"
        else:
            stop -= _SEGMENT_HEAD
    scanned.used_bytes = scanned.whole_bytes = at
    while (size := frame_at(start + at, stop - at, scanned, marker)) >= 0:
        kind = start[at + marker + 8]
        if kind == END:
            scanned.ended = True
            return scanned
        scanned.commits |= not kind & _IN_GROUP
        if kind == COMMIT:
            scanned.open_frames = 0
        else:
            scanned.frames.append(frame_of(start + at + marker, size))
            scanned.open_frames = scanned.open_frames + 1 if kind & _IN_GROUP else 0
        at += marker + _FRAME_HEAD_1 + size
        scanned.used_bytes = at
        if not scanned.open_frames:
            scanned.whole_bytes = at
    # A killed process leaves no whole frame behind the break, nor does a disk that wrote all in order.
    put_u64(pattern, scanned.marker)
    while marker and stop - at > _FRAME_HEAD:
        found = <const char*>memmem(start + at, stop - at, pattern, _MARKER)
        if found == NULL:
            break
        at = found - start
        size = frame_at(found, stop - at, scanned, marker)
        if size >= 0:
            scanned.behind.append(frame_of(found + marker, size))
            at += size
        at += 1
    return scanned
