# cython: language_level=3
"""The types of connection.py where requests pass through it."""

cimport cython
from libc.stdint cimport int64_t

from darner._proto cimport Parser, Request, send
from darner.wire.holds cimport Holds
from darner.wire.counters cimport Counters


cdef int REQUESTS_PER_TURN, REQUESTS_PER_LOOK, LAST_PLAIN_VERB
cdef Py_ssize_t OUT_BYTES, UNPARSED_BYTES
cdef int WAITING, STREAMING, UPLOADING, FULL, YIELDING, FINISHED


@cython.locals(ns=int64_t)
cpdef int64_t now_ms() except? -1


cdef class Connection:
    cdef public:
        object clients
        object broker
        object budget
        Counters counters
        bint bare_keys
        list out
        Py_ssize_t out_bytes
        Holds holds
        object upload
        object guard
        long idle_sweeps
    cdef:
        object _transport
        object _upload_request
        Parser _parser
        int _blocked
        int _held
        set _quiet
        int _streams
        int _unlooked
        bint _is_timed
        long _window
        bint _awake
        int _descriptor
        bint _buffered
        bint _reading
        bint _more
        object _rest
        bint _ended
        bint _ending
        bint _is_unread
        bint _lost
        bint _draining
        bint _linger
        object _waiter
        object _time_out
        object _timer

    @cython.locals(blocked=int)
    cpdef data_received(self, bytes data)
    @cython.locals(left=int, parser=Parser, request=Request, guarded=bint)
    cdef _run(self)
    cdef bint _is_spent(self) except -1
    cpdef expect_long(self)
    @cython.locals(blocked=int)
    cdef _settle(self)
    @cython.locals(out=list, data=bytes)
    cdef _send(self)
    @cython.locals(sent=Py_ssize_t)
    cdef _write(self, bytes data)
    cpdef _touch(self)
