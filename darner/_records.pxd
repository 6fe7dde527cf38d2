# cython: language_level=3
"""What the compiled modules above know of _records.pyx beyond what Python sees."""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t


cdef enum:
    # The size of chunks, into which larger items are cut, on the wire and on disk: docs/design.md has the
    # measurement.
    _CHUNK = 65536
    # The size of an item's checksum and header, before its bytes.
    _RECORD_HEAD = 28


cdef class Item:
    cdef:
        public uint64_t id
        readonly uint32_t flags
        readonly uint64_t expires_ms
        readonly uint64_t enqueued_ms
        public uint16_t attempts
        public bint is_reserved             # whether a client of a queue or a cursor holds just this one
        readonly uint64_t size
        readonly bytes record
        readonly uint64_t memory_bytes      # how much memory it takes, with its bytes if they are there
        readonly uint64_t blob
        readonly uint32_t chunk_bytes

    cpdef Item another(self)
    cpdef forget_data(self)


cdef inline uint64_t token_of(Item item) noexcept:
    """Return what names one delivery of an item: how often it has come back, times 2^48, and its id."""
    return (<uint64_t>item.attempts << 48) + item.id


cdef enum:
    # How many bounds a histogram has; the last count is of what took longer than all of them.
    _BOUNDS = 18


cpdef int64_t since_boot_ms() except -1
cpdef uint64_t monotonic_ns() noexcept


cdef class Histogram:
    cdef:
        uint64_t _counts[_BOUNDS + 1]
        readonly uint64_t total_ns

    cpdef void observe(self, uint64_t ns) noexcept


cdef class State:
    cdef:
        public uint64_t life
        public uint64_t change
        public uint64_t floor
        public uint64_t trimmed
        public uint64_t next_id
        public uint64_t next_blob
        public uint64_t items
        public uint64_t bytes
        public uint64_t created_ms
        public bint deleted

    cpdef void add(self, Item item)
    cpdef bint drop(self, uint64_t id, uint64_t size)
    cpdef State copy(self)


cdef class Segment:
    cdef:
        Py_buffer _view
        char* _memory
        Py_ssize_t _size
        int _kind_flag              # of the frames of a group
        int _bus_errors             # how many there had been when the segment was begun
        readonly Py_ssize_t used_bytes
        public object refusal
        readonly uint64_t number
        readonly uint64_t marker
        readonly bint in_group      # whether a group is begun and not ended
        readonly bint is_lost       # whether a page could not be written: only what was written before it is valid

    cdef char* frame(self, Py_ssize_t size) noexcept
    cdef bint close_frame(self, char* payload, Py_ssize_t size, int kind, uint32_t journal, uint64_t change) noexcept
    cdef bint write(self, int kind, uint32_t journal, uint64_t change, bytes payload)
    cpdef bint append(self, int kind, uint32_t journal, uint64_t change, bytes payload)
    cpdef bint put(self, int kind, uint32_t journal, uint64_t change, Item item)
    cpdef bint drop(self, uint32_t journal, uint64_t change, uint64_t id, uint64_t size, uint64_t blob)


cpdef bytes copy_record(bytes record)
cpdef Item new_item(bytes record, uint32_t flags, uint64_t expires_ms, uint64_t enqueued_ms)
cpdef bytes encode_item(Item item)
