# cython: language_level=3
"""The types of limits.py: each set to a queue that has limits asks them."""

cimport cython
from libc.stdint cimport int64_t, uint64_t

from darner._records cimport State
from darner.journal.journal cimport Journal
from darner.queues.reservations cimport Reserved


@cython.final
cdef class Limits:
    cdef public:
        bint are_set
        bint needs_upkeep
        uint64_t uploading_bytes
    cdef:
        Journal _journal
        Reserved _reserved
        int64_t _max_items
        int64_t _max_bytes
        int64_t _max_item_size
        bint _discards_old

    cpdef make_room(self, queue, int64_t size)
    cdef _check_size(self, int64_t size)
    cdef bint _is_full(self, int64_t size) except -1
    @cython.locals(journal=Journal, state=State)
    cdef bint _are_over(self, int64_t items, int64_t size) except -1
