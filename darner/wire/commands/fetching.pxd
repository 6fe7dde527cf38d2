# cython: language_level=3
"""The types of fetching.py where requests pass through it."""

cimport cython
from libc.stdint cimport uint64_t

from darner._proto cimport Request, value
from darner._records cimport Item
from darner.queues.counts cimport Counts
from darner.queues.queue cimport Queue
from darner.wire.connection cimport Connection
from darner.wire.counters cimport Counters
from darner.wire.sending cimport Sender


cdef uint64_t LARGE_BYTES


@cython.locals(queue=Queue, item=Item)
cpdef get(Connection connection, Request request)
cdef _get_otherwise(Connection connection, Request request, queue)
@cython.locals(most=Py_ssize_t)
cdef bint _holds_too_many(Connection connection, Request request) except -1
@cython.locals(counts=Counts)
cpdef prepare(Connection connection, Request request, queue)
cdef _find_source(Connection connection, Request request)
cpdef release(Connection connection, Request request)
cpdef fetch(Request request, queue)
cpdef fetch_or_wait(Connection connection, Request request, queue, double deadline)
cdef _fail(Connection connection, Request request, queue, double deadline, error)
@cython.locals(counters=Counters)
cpdef answer(Connection connection, Request request, queue, Item item, bint one_of_many=*, double deadline=*, again=*)
@cython.locals(sender=Sender, reply=bytes)
cpdef send_item(Connection connection, Request request, Item item, bint one_of_many=*, queue=*)
cpdef bytes key(Connection connection, Request request)
