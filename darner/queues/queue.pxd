# cython: language_level=3
"""The types of queue.py where requests pass through it."""

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t

from darner._records cimport Item, new_item
from darner.environment.timeline cimport Earliest, Timeline
from darner.journal.journal cimport Journal
from darner.queues.counts cimport Counts
from darner.queues.limits cimport Limits
from darner.queues.reservations cimport Reserved
from darner.queues.item_window cimport Window


cpdef uint64_t expires_ms(int64_t exptime, uint64_t now_ms) except? 0


cdef Item _returned(Item item)


@cython.final
cdef class Queue:
    cdef object __weakref__
    cdef public:
        bytes name
        Journal journal
        Timeline times
        object settings
        bint is_durable
        bint syncs
        Counts counts
        Window window
        Reserved reserved
        Limits limits
        object expiry
        object delayed
        object dedup
        object disposal
        object waiters
        dict cursors
        dict waiting_cursors
        int64_t taken_ms
        bint has_more_upkeep
        object on_upkeep_due
        object on_move
        object on_sync
        object on_fault
    cdef:
        Earliest _earliest_expiry
        object _idle_time
        bint _is_serving
        int _returns
        int64_t _max_age_ms
        int _max_attempts
        int64_t _taken_enqueued_ms

    @cython.locals(now=int64_t)
    cpdef push(self, bytes record, uint32_t flags, int64_t exptime)
    cpdef append(self, Item item)
    cpdef arrive(self, Item item)
    cpdef serve(self)
    cpdef put(self, Item item, delay_ms=*, once=*)
    @cython.locals(item=Item)
    cpdef Item take(self)
    @cython.locals(item=Item)
    cpdef Item reserve(self)
    @cython.locals(item=Item)
    cpdef Item read_staged(self, bytes label, uint64_t start)
    cdef _set_aside(self, Item item)
    cpdef Item peek(self)
    @cython.locals(window=Window, item=Item, damaged=int, expired=int)
    cdef Item _head(self)
    cdef _take(self, Item item)
    cpdef close(self, Item item)
    cdef bint _has_given_up(self, Item item) except -1
    cpdef bint is_reserved(self, Item item)
    @cython.locals(times=Timeline)
    cpdef bint has_expired(self, Item item, int64_t now) except -1
    cpdef note_expiry(self, Item item)
