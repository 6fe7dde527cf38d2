# cython: language_level=3
"""What the compiled modules above know of _proto.pyx beyond what Python sees."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from darner._records cimport Item


cdef struct Word:
    const char* at
    Py_ssize_t size


cdef class Request:
    cdef:
        readonly int verb
        readonly bint noreply
        # The options behind the queue's name. `fetches`: whether an item is fetched after a close or an abort.
        # `with_cas`: whether the items' tokens are asked for.
        readonly bint has_options
        readonly bint open
        readonly bint close
        readonly bint abort
        readonly bint peek
        readonly bint waits
        readonly bint fetches
        readonly bint with_cas
        readonly bint sync
        # whether these are some keys of a long get, which are answered without an END
        readonly bint is_run
        # of a get of several keys: whether one item is fetched in all, from the first that has one
        readonly bint waits_on_any
        # whether an abort has a delay, which may be 0
        readonly bint has_delay
        readonly uint32_t flags
        readonly int64_t exptime
        readonly uint64_t size
        readonly uint64_t timeout_ms
        readonly uint64_t delay_ms
        readonly uint64_t token     # of the reserved item to close or abort; 0: the one reserved first
        # of a peek: the least id of the item; 0: that at the head. A look that takes many turns moves it on.
        public uint64_t from_id
        readonly bytes key
        readonly bytes queue
        readonly bytes dedup_id     # by which a set that is sent again is recognized
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


cpdef bytes value(bytes key, Item item, bint with_cas, bint last)
cpdef Py_ssize_t send(int descriptor, bytes data) except -1
