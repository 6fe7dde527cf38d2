# cython: language_level=3
"""The types of reservations.py: each `get/open` and each close passes through it."""

cimport cython
from libc.stdint cimport int64_t, uint64_t

from darner._records cimport Item


@cython.final
cdef class Reserved:
    cdef public:
        dict by_id
        uint64_t bytes
        int64_t timeout_ms
    cdef:
        object _since_ms
        list _overdue
        bint _are_many_overdue

    cpdef add(self, Item item)
    cpdef remove(self, Item item)
    @cython.locals(item=Item)
    cpdef clear(self)
    cpdef start_time(self, Item item, now)
