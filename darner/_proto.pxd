# cython: language_level=3
"""What the compiled modules above know of _proto.pyx beyond what Python sees."""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t


cdef struct Word:
    const char* at
    Py_ssize_t size


cdef class Request:
    cdef:
        readonly int verb
        readonly bint noreply
        # What stands behind the queue's name. `fetches`: whether it goes on to fetch an item once it has
        # closed or aborted what was held. `with_cas`: whether it asks for the items' ids.
        readonly bint has_options
        readonly bint open
        readonly bint close
        readonly bint abort
        readonly bint peek
        readonly bint waits
        readonly bint fetches
        readonly bint with_cas
        readonly bint sync
        # Of the keys of a long get some, which are answered without an end.
        readonly bint is_run
        readonly uint32_t flags
        readonly int64_t exptime
        readonly uint64_t size
        readonly uint64_t timeout_ms
        readonly uint64_t delay_ms
        readonly bytes key
        readonly bytes queue
        readonly bytes record       # of SET: room for the head of an item's record, then the data
        readonly bytes chunk        # of SET_CHUNK
        readonly bytes error
        readonly list args
        readonly list rest
        readonly object meta        # the flags of a meta command; None of others


cdef class Parser:
    cdef:
        bytes _buffer
        Py_ssize_t _at
        int _state
        bint _started
        Request _set                # whose data block is being read
        bytes _body                 # of the block or chunk being read
        Py_ssize_t _filled          # bytes of _body that are there
        uint64_t _left              # bytes of the data block not yet read
        int _verb                   # of the long get being read
        Py_ssize_t _line_bytes      # of its line that are read
        Py_ssize_t _keys            # that were in them
        bint _skips                 # whether the rest of its keys is passed over

    cpdef void feed(self, bytes data)
    cpdef Request next_request(self)
    cpdef void skip_keys(self)
    cdef Request leave(self, int verb)
    cdef Request fail(self, bytes error, bint noreply)
    cdef Request next_line(self)
    cdef Request begin_keys(self, const char* at, Py_ssize_t left)
    cdef Request look_over(self, const char* at, Py_ssize_t size, int verb)
    cdef Request next_keys(self)
    cdef Request parse_line(self, const char* at, Py_ssize_t size)
    cdef Request begin_block(self, Word* words, Py_ssize_t n, bytes refusal)
    cdef Request begin_meta_block(self, Word* words, Py_ssize_t n)
    cdef Request begin_data(self, uint64_t size)
    cdef int block_end(self)
    cdef bint fill(self, Py_ssize_t gap, Py_ssize_t size)
    cdef Request finish_body(self)
    cdef Request next_chunk(self)
    cdef Request swallow(self)


cdef class Item:
    cdef:
        public uint64_t id
        readonly uint32_t flags
        readonly uint64_t expires_ms
        readonly uint64_t enqueued_ms
        public uint16_t attempts
        readonly uint64_t size
        readonly bytes record
        readonly uint64_t memory_bytes      # what it takes there, with its bytes if they are in memory
        readonly uint64_t blob
        readonly uint32_t chunk_bytes

    cpdef Item another(self)
    cpdef forget_data(self)


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
        int _bus_errors             # how many there had been when it was begun
        readonly Py_ssize_t used_bytes
        public object refusal
        readonly uint64_t number
        readonly uint64_t marker
        readonly bint in_group      # whether a group is begun and not ended
        readonly bint is_lost       # whether a page could not be written: what was written before that counts

    cdef char* frame(self, Py_ssize_t size) noexcept
    cdef bint close_frame(self, char* payload, Py_ssize_t size, int kind, uint32_t journal, uint64_t change) noexcept
    cdef bint write(self, int kind, uint32_t journal, uint64_t change, bytes payload)
    cpdef bint append(self, int kind, uint32_t journal, uint64_t change, bytes payload)
    cpdef bint put(self, int kind, uint32_t journal, uint64_t change, Item item)
    cpdef bint drop(self, uint32_t journal, uint64_t change, uint64_t id, uint64_t size, uint64_t blob)


cpdef bytes value(bytes key, Item item, bint with_cas, bint last)
cpdef bytes copy_record(bytes record)
cpdef Py_ssize_t send(int descriptor, bytes data) except -1
cpdef Item new_item(bytes record, uint32_t flags, uint64_t expires_ms, uint64_t enqueued_ms)
cpdef bytes encode_item(Item item)
