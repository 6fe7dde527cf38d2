# cython: language_level=3
"""The types of holds.py: every fetch asks whether there is something."""

cimport cython

from darner._records cimport Item


@cython.final
cdef class Holds:
    cdef public:
        dict held
    cdef:
        bint _is_disordered

    @cython.locals(item=Item, count=Py_ssize_t)
    cpdef Py_ssize_t count(self, bytes name, Py_ssize_t most=*)
    cpdef add(self, queue, Item item)
    @cython.locals(item=Item, closed=Py_ssize_t)
    cpdef Py_ssize_t close(self, bytes name, Py_ssize_t count=*)
    cpdef bint abort(self, bytes name)
