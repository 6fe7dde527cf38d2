# cython: language_level=3
"""The types of sending.py: each reply passes through it."""

cimport cython

from darner._proto cimport send
from darner.wire.counters cimport Counters


cdef Py_ssize_t MAX_GATHERED_BYTES


@cython.final
cdef class Sender:
    cdef public:
        list replies
        Py_ssize_t gathered_bytes
        int pending_writes
        bint is_disconnected
        bint is_paused
        bint is_streaming
    cdef:
        object _transport
        object _on_ready
        Counters _counters
        int _descriptor
        bint _is_buffered
        object _linger_timer
        int _streams

    cpdef connect(self, transport)
    cdef bint is_blocked(self) noexcept
    cdef bint is_full(self) noexcept
    @cython.locals(replies=list, data=bytes)
    cdef send(self)
    cdef pause(self)
    cdef resume(self)
    cdef check_transport(self)
    cdef abandon(self)
    @cython.locals(sent=Py_ssize_t)
    cdef _write(self, bytes data)
    cdef _disconnect(self)
    cdef _send_streams(self)
    cdef _begin_stream(self, stream)
    cdef _continue_stream(self, stream)
    cpdef hold(self)
    cpdef release(self)
    cpdef wait_for(self, pending)
