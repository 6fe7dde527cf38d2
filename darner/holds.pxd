# cython: language_level=3
"""The types of holds.py: every fetch asks whether there is something."""

cimport cython

from darner._proto cimport Item


cdef class Holds:
    cdef public:
        dict held

    @cython.locals(item=Item)
    cpdef Py_ssize_t count(self, bytes name)
    cpdef add(self, queue, Item item)
    cpdef Py_ssize_t close(self, bytes name, Py_ssize_t count=*)
    cpdef bint abort(self, bytes name)
