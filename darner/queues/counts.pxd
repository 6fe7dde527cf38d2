# cython: language_level=3
"""The types of counts.py: each set counts an item."""

cimport cython
from libc.stdint cimport uint64_t


@cython.final
cdef class Counts:
    cdef public:
        uint64_t total_items
        uint64_t expired_items
        uint64_t discarded
        uint64_t duplicates
        uint64_t transactions
        uint64_t canceled_transactions
        uint64_t total_flushes
