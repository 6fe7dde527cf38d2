# cython: language_level=3
"""The types of journal.py where requests pass through it."""

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from darner._records cimport Item, Segment, State
from darner.journal.batch cimport Batch
from darner.journal.live_ids cimport LiveIds
from darner.journal.records cimport Records


cdef int _PUT, _CURSOR


cdef class Journal:
    cdef public:
        bytes name
        object path
        object writer
        object offload
        object log
        State state
        LiveIds live
        uint64_t next_unread
        object first
        bint expiring
        dict cursors
        bytes settings
        object delayed
        object dedup_ids
        object blobs
        Records records
        object database
        object trimming
        object compaction
        object damage
        Py_ssize_t damaged_items
        list damaged_kept
        Py_ssize_t lost_items
        bint dirty
        bint writing
        object failing
        object fault
        bint is_backlogged
        list held_back
        uint64_t generation
    cdef:
        Segment _segment
        uint64_t _entered
        uint32_t _number
        bint _has_paused

    @cython.locals(state=State, tried=Py_ssize_t)
    cpdef _log(self, int kind, bytes payload)
    @cython.locals(log=object, state=State, tried=Py_ssize_t)
    cpdef put(self, Item item)
    @cython.locals(batch=Batch)
    cpdef apply_put(self, Item item)
    cdef Py_ssize_t _begin_segment(self, Py_ssize_t tried) except -1
    cdef _hold_batch_size(self)
    @cython.locals(state=State, tried=Py_ssize_t)
    cpdef remove(self, Item item)
    cpdef apply_remove(self, uint64_t id, uint64_t size, uint64_t blob)
    @cython.locals(records=Records, batch=Batch, staged=Item, was_oldest=bint)
    cdef _take_out(self, uint64_t id, uint64_t size, uint64_t blob)
    cpdef check_whole(self)
    @cython.locals(batch=Batch)
    cdef _remove_out_of_turn(self, uint64_t id, uint64_t size, bint is_staged)
    cpdef stage_deletion(self, uint64_t id)
    cpdef keep_cursor(self, bytes label, list place)
    cpdef apply_cursor(self, bytes label, list place)
    @cython.locals(state=State, records=Records)
    cpdef Item staged_from(self, uint64_t start)
