# cython: language_level=3
"""The types of timeline.py: requests ask for the time, and expiring items are compared with it."""

cimport cython
from libc.stdint cimport int64_t

from darner._records cimport since_boot_ms


@cython.locals(run=int64_t)
cpdef int64_t run_of(int64_t stamp) except? -1


@cython.final
cdef class Timeline:
    cdef public:
        int64_t offset_ms
        int64_t last
    cdef:
        object _wall
        object _monotonic
        bint _is_since_boot
        int64_t _start
        int64_t _end
        int64_t _origin
        dict _earlier

    @cython.locals(ms=int64_t)
    cpdef int64_t now(self) except? -1
    cpdef bint is_present(self, int64_t stamp) except -1
    @cython.locals(run=int64_t)
    cpdef int64_t date_ms(self, int64_t stamp) except? -1
    cpdef bint has_passed(self, int64_t stamp, int64_t now) except -1
    cpdef int64_t age_ms(self, int64_t stamp, int64_t now) except? -1


@cython.final
cdef class Earliest:
    cdef:
        Timeline _times
        int64_t _present
        int64_t _date_ms

    cpdef clear(self)
    cpdef bint note(self, int64_t stamp) except -1
    cpdef bint is_never(self) except -1
    cpdef bint has_passed(self, int64_t now) except -1
