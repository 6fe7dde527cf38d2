# cython: language_level=3
"""The types of journal.py where requests pass through it."""

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from darner._records cimport Item, Segment, State


cdef int _PUT


cdef class Batch:
    cdef public:
        dict puts
        dict attempts
        list ops
        set expunged
        dict delayed
        list due
        set ended
        bint recount
        set cursors
        Py_ssize_t room
        bint is_bound
        State state
        frozenset kept
        uint64_t segment
        Py_ssize_t trimmed_records
        Py_ssize_t trimmed_bytes
        list obsolete_blobs
        bint trims
        bint proves
        Py_ssize_t dead_bytes


cdef class Journal:
    cdef public:
        bytes name
        object path
        object offload
        object log
        Batch batch
        Batch sealed
        bint writing
        bint dirty
        object failing
        object fault
        bint is_backlogged
        list held_back
        uint64_t generation
        set gone
        set kept
        uint64_t reads
        bint expiring
        Py_ssize_t delayed_items
        uint64_t delayed_bytes
        dict next_due
        dict cursors
        set begun
        list obsolete_blobs
        Py_ssize_t lost
        Py_ssize_t damaged_items
        list unsound
        State state
        uint64_t stored_id
        uint64_t stored_change
    cdef:
        object _writes
        Segment _segment
        uint64_t _entered
        uint32_t _number
        object _compacting
        object _using
        object _db
        object _write
        object _place
        object _closed_for
        set _told
        object _home
        dict _origins
        Py_ssize_t _told_quarantined
        object _quarantine
        bytes _stored_state
        bint _has_paused
        bint _is_beyond
        bint _exists
        bint _must_exist
        bint _has_kept
        object _has_attempts
        bint _has_state
        bint _has_mark
        bytes _state_key
        bint _doubtful
        uint64_t _blobs_to
        Py_ssize_t _dead_bytes
        uint64_t _compact_from
        Py_ssize_t _trimmed_records
        Py_ssize_t _trimmed_bytes
        Py_ssize_t _untrimmed_puts
        object _last_looked_at
        object _compacting_for
        bint _compacted
        Py_ssize_t _left_bytes
        bint _stirred
        dict _due_from
        uint64_t _live_from
        uint64_t _expunged_to

    @cython.locals(log=object, state=State)
    cpdef put(self, Item item)
    @cython.locals(state=State)
    cpdef remove(self, Item item)
    @cython.locals(batch=Batch)
    cdef _put(self, Item item)
    @cython.locals(batch=Batch, state=State, staged=Item, was_oldest=bint)
    cdef _remove(self, uint64_t id, uint64_t size, uint64_t blob)
    cdef _fill(self)
    cdef _decoded(self, bytes key, bytes record, set expunged)
    cdef Item _with_attempts(self, Item item)
    cdef _delete(self, uint64_t id)
    @cython.locals(state=State, found=uint64_t)
    cpdef check_whole(self)
