# cython: language_level=3
"""The types of holds.py: every fetch asks whether there is something."""

cimport cython
from libc.stdint cimport uint64_t

from darner._records cimport Item


@cython.final
cdef class Holds:
    cdef public:
        dict held
    cdef:
        dict _by_token
        bint _is_disordered
        object _spare

    @cython.locals(item=Item, count=Py_ssize_t)
    cpdef Py_ssize_t count(self, bytes name, Py_ssize_t most=*)
    cpdef bint has_as_many(self, bytes name, Py_ssize_t count)
    cpdef add(self, queue, Item item)
    @cython.locals(item=Item)
    cdef tuple _first(self, bytes name)
    @cython.locals(hold=tuple, by_token=dict)
    cdef tuple _find(self, bytes name, uint64_t token)
    cpdef bint has_item(self, bytes name, uint64_t token)
    @cython.locals(closed=Py_ssize_t)
    cpdef Py_ssize_t close(self, bytes name, Py_ssize_t count=*)
    @cython.locals(hold=tuple, item=Item)
    cpdef bint close_item(self, bytes name, uint64_t token)
    @cython.locals(hold=tuple, item=Item)
    cpdef abort(self, bytes name, uint64_t token=*)
    @cython.locals(by_token=dict)
    cdef _drop(self, bytes name, tuple hold)
