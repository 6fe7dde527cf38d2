# cython: language_level=3
"""The types of live_ids.py where requests pass through it."""

cimport cython
from libc.stdint cimport uint64_t

from darner._records cimport State


@cython.final
cdef class LiveIds:
    cdef public:
        State state
        set removed
        set kept
        bint has_kept_record
        bint is_kept_unstaged

    cpdef bint is_live(self, uint64_t id) except -1
    cpdef remove(self, uint64_t id)
    @cython.locals(floor=uint64_t)
    cpdef advance(self)
    @cython.locals(state=State)
    cpdef bint is_whole(self)
