# cython: language_level=3
"""The types of connection.py where requests pass through it."""

cimport cython

from libc.stdint cimport uint64_t

from darner._proto cimport Parser, Request
from darner._records cimport Histogram, monotonic_ns
from darner.wire.counters cimport Counters
from darner.wire.holds cimport Holds
from darner.wire.sending cimport Sender


cdef unsigned int READS_PER_TIME
cdef int REQUESTS_PER_TURN, REQUESTS_PER_CHECK, LAST_PLAIN_VERB
cdef Py_ssize_t UNPARSED_BYTES
cdef int WAITING, UPLOADING, YIELDING, FINISHED


@cython.final
cdef class Connection:
    cdef public:
        object clients
        object broker
        dict sinks
        dict sources
        object budget
        Counters counters
        bint bare_keys
        Sender sender
        Holds holds
        object incoming
        object guard
        long idle_sweeps
    cdef:
        list _commands
        object _transport
        Parser _parser
        int _blocked
        bint _has_unparsed
        bint _is_reading
        object _continuation
        bint _wake_is_due
        int _requests_until_check
        bint _turn_is_timed
        long _window
        bint _sends_no_more
        bint _eof_is_unread
        bint _replies_are_unread
        bint _is_draining
        bint _lingers
        object _wait
        Histogram _reply_times
        uint64_t _begun_ns
        unsigned int _reads

    @cython.locals(blocked=int)
    cpdef data_received(self, bytes data)
    @cython.locals(left=int, parser=Parser, sender=Sender, request=Request, is_guarded=bint)
    cdef _serve(self)
    cdef bint _turn_is_over(self) except -1
    cpdef expect_long_work(self)
    @cython.locals(blocked=int, sender=Sender, times=Histogram)
    cdef _send_replies(self)
    cpdef _schedule_wake(self)
