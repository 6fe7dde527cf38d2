# cython: language_level=3
"""The types of journal.py where requests pass through it."""

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from darner._proto cimport Item, Segment, State


cdef int _PUT, _REWRITE


cdef class Batch:
    cdef public:
        dict puts
        dict rewrites
        list ops
        Py_ssize_t removed
        Py_ssize_t room
        State state
        frozenset kept
        uint64_t segment
        Py_ssize_t trimmed_records
        Py_ssize_t trimmed_bytes
        list doomed


cdef class Journal:
    cdef public:
        bytes name
        object path
        object offload
        object log
        Batch batch
        Batch sealed
        bint writing
        bint dirty
        object failing
        bint crowded
        list crowding
        uint64_t generation
        set gone
        set kept
        list doomed
        Py_ssize_t lost
        State state
        uint64_t stored_id
        uint64_t stored_change
    cdef:
        object _writes
        Segment _segment
        uint64_t _entered
        uint32_t _number
        object _compacting
        object _using
        object _db
        bint _exists
        bint _doubtful
        uint64_t _compact_from
        Py_ssize_t _trimmed_records
        Py_ssize_t _trimmed_bytes
        object _last_looked_at

    @cython.locals(log=object, state=State)
    cpdef put(self, Item item)
    @cython.locals(state=State)
    cpdef remove(self, Item item)
    @cython.locals(batch=Batch)
    cdef _put(self, Item item)
    @cython.locals(batch=Batch, state=State, staged=Item, was_oldest=bint)
    cdef _remove(self, uint64_t id, uint64_t size, uint64_t blob)
