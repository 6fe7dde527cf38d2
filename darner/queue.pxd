# cython: language_level=3
"""The types of queue.py where requests pass through it."""

cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t

from darner._proto cimport Item, new_item
from darner.journal cimport Journal


cpdef uint64_t expires_ms(int64_t exptime, uint64_t now_ms) except? 0


cdef class Queue:
    cdef public:
        bytes name
        Journal journal
        object clock
        dict reserved
        object waiters
        object window
        Py_ssize_t window_bytes
        uint64_t total_items
        uint64_t expired_items
        uint64_t discarded
        uint64_t transactions
        uint64_t canceled_transactions
        uint64_t total_flushes
    cdef:
        int64_t _age_ms
        object _opened
        uint64_t _reads
        Py_ssize_t _most_bytes

    @cython.locals(now=int64_t)
    cpdef push(self, bytes record, uint32_t flags, int64_t exptime)
    @cython.locals(journal=Journal)
    cpdef append(self, Item item)
    @cython.locals(item=Item)
    cpdef Item pop(self)
    cpdef Item reserve(self)
    cpdef Item peek(self)
    @cython.locals(item=Item)
    cdef Item _head(self)
    @cython.locals(item=Item)
    cdef _shift(self)
    cdef _take(self, Item item)
