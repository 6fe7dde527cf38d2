# cython: language_level=3
"""The types of reading.py where requests pass through it."""

cimport cython
from libc.stdint cimport uint64_t

from darner._records cimport Item
from darner.journal.journal cimport Journal
from darner.journal.live_ids cimport LiveIds


@cython.locals(live=LiveIds, item=Item, items=list, size=Py_ssize_t)
cpdef read(Journal journal, uint64_t start, Py_ssize_t max_items, Py_ssize_t max_bytes)
@cython.locals(item=Item, items=list, size=Py_ssize_t)
cpdef scan(Journal journal, uint64_t start, Py_ssize_t max_items, Py_ssize_t max_bytes, uint64_t stop=*)
