# cython: language_level=3
"""The types of queue.py where requests pass through it."""

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t

from darner._records cimport Item, new_item
from darner.journal.journal cimport Journal
from darner.environment.timeline cimport Earliest, Timeline, run_of


cpdef uint64_t expires_ms(int64_t exptime, uint64_t now_ms) except? 0


cdef class Queue:
    cdef object __weakref__
    cdef public:
        bytes name
        Journal journal
        object clock
        Timeline times
        bint is_durable
        bint syncs
        object settings
        object on_move
        object on_upkeep_due
        object on_fault
        dict reserved
        object waiters
        dict cursors
        dict awaited
        object window
        Py_ssize_t window_bytes
        bint has_more_upkeep
        uint64_t total_items
        uint64_t expired_items
        uint64_t discarded
        uint64_t transactions
        uint64_t canceled_transactions
        uint64_t total_flushes
        uint64_t uploading_bytes
    cdef:
        int _returning
        list _overdue
        bint _is_overdue
        bint _discards
        int64_t _taken_ms
        int64_t _taken_enqueued_ms
        uint64_t _unread_id
        int64_t _unread_enqueued_ms
        Py_ssize_t _most_bytes
        uint64_t _reserved_bytes
        object _reserved_ms
        bint _limited
        int64_t _max_age_ms
        int _max_attempts
        int64_t _open_timeout_ms
        object _expire_to
        object _dead_letter_to
        list _moved
        bint _leaving
        bint _serving
        Earliest _soonest
        Earliest _due
        uint64_t _swept
        object _idle_ms
        uint64_t _idle_id

    @cython.locals(now=int64_t)
    cpdef push(self, bytes record, uint32_t flags, int64_t exptime)
    cpdef append(self, Item item)
    @cython.locals(journal=Journal)
    cdef _line_up(self, Item item)
    cdef _come(self, Item item)
    cpdef serve(self)
    cpdef put(self, Item item, int64_t delay_ms=*)
    cdef _hold(self, Item item)
    @cython.locals(item=Item)
    cpdef Item take(self)
    @cython.locals(item=Item)
    cpdef Item reserve(self)
    cpdef Item peek(self)
    @cython.locals(item=Item, damaged=int, expired=int)
    cdef Item _head(self)
    @cython.locals(item=Item, size=Py_ssize_t, waiting_bytes=uint64_t)
    cdef _measure(self)
    @cython.locals(item=Item)
    cdef _expire_first(self)
    @cython.locals(item=Item)
    cdef _shift(self)
    cdef _unshift(self, Item item)
    cdef _take(self, Item item)
    cpdef close(self, Item item)
    cpdef bint is_reserved(self, Item item)
    cdef _release(self, Item item)
