# cython: language_level=3
"""The types of batch.py where requests pass through it."""

cimport cython
from libc.stdint cimport uint64_t

from darner._records cimport State


@cython.final
cdef class Batch:
    cdef public:
        dict puts
        dict attempts
        list ops
        list removed
        set removed_unread
        dict delayed
        list delayed_keys
        set removed_delayed
        bint delayed_changed
        dict dedup_ids
        bint dedup_changed
        set cursors
        bint settings_changed
        bint needs_synced_log
        Py_ssize_t room_bytes
        State state
        frozenset kept
        uint64_t segment
        list dedup_numbers
        bint trims
        Py_ssize_t dead_bytes
        bint confirms_compaction
        Py_ssize_t trimmed_ids
        uint64_t dedup_trimmed
        bytes dedup_trim_from
        Py_ssize_t trimmed_records
        Py_ssize_t trimmed_bytes
        list obsolete_blobs
