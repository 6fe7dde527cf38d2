# cython: language_level=3
"""The types of item_window.py: each item that is set and fetched passes through it."""

cimport cython
from libc.stdint cimport uint64_t

from darner._records cimport Item
from darner.journal.journal cimport Journal
from darner.queues.reservations cimport Reserved


@cython.final
cdef class Window:
    cdef public:
        object items
        Py_ssize_t bytes
        bint has_item_leaving
    cdef:
        object _append
        object _popleft
        Journal _journal
        Reserved _reserved
        Py_ssize_t _max_bytes
        list _returned

    @cython.locals(journal=Journal)
    cpdef append(self, Item item)
    @cython.locals(item=Item)
    cpdef pop(self)
    cpdef put_first(self, Item item)
    cpdef bint fill(self) except -1
    @cython.locals(journal=Journal, damaged=int)
    cdef bint _read(self) except -1
    @cython.locals(item=Item, size=Py_ssize_t, live_bytes=uint64_t)
    cdef _measure(self)
