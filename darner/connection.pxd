# cython: language_level=3
"""The types of connection.py where requests pass through it."""

from darner._proto cimport Parser, Request


cdef class Connection:
    cdef public:
        object clients
        object broker
        object counters
        bint bare_keys
        list out
        Py_ssize_t out_bytes
        dict holds
        object upload
    cdef:
        object _transport
        object _upload_request
        Parser _parser
        int _blocked
        int _held
        int _streams
        bint _awake
        int _descriptor
        bint _buffered
        bint _reading
        bint _more
        object _rest
        bint _ended
        bint _lost
        bint _draining
        bint _linger
        object _waiter
        object _timer

    cdef _run(self)
    cdef _settle(self)
    cdef _send(self)
    cdef _write(self, bytes data)
    cpdef _touch(self)
