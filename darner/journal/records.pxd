# cython: language_level=3
"""The types of records.py where requests pass through it."""

cimport cython
from libc.stdint cimport uint64_t

from darner._records cimport Item
from darner.journal.batch cimport Batch


cdef Py_ssize_t _STATE_KEY_BYTES


@cython.final
cdef class Records:
    cdef public:
        Batch batch
        Batch sealed
        uint64_t stored_id
        object has_attempts
        Py_ssize_t dead_bytes

    cpdef staged(self, uint64_t id)
    cpdef bint is_removed_unread(self, uint64_t id) except -1
    cdef _decoded(self, bytes key, bytes record, set gone, set sealed_gone, set removed)
    cdef Item _with_attempts(self, Item item)
