# cython: language_level=3
"""The types of items.py where requests pass through it."""

cimport cython
from libc.stdint cimport uint64_t

from darner._proto cimport Request, value
from darner._records cimport Item, new_item
from darner.wire.connection cimport Connection
from darner.wire.holds cimport Holds
from darner.queues.queue cimport Queue
from darner.wire.counters cimport Counters


cdef uint64_t LARGE_BYTES


@cython.locals(sinks=dict, queue=Queue)
cpdef set_(Connection connection, Request request)
@cython.locals(sources=dict, queue=Queue, item=Item)
cpdef get(Connection connection, Request request)
cdef _get_otherwise(Connection connection, Request request, queue)
cdef _queue(Connection connection, Request request)
cdef _release(Connection connection, Request request)
cdef _prepare(Connection connection, Request request, queue)
@cython.locals(counters=Counters)
cdef _answer(Connection connection, Request request, queue, Item item, bint one_of_many=*, double deadline=*)
cdef bytes _key(Connection connection, Request request)
@cython.locals(reply=bytes)
cpdef send_item(Connection connection, Request request, Item item, bint one_of_many=*, queue=*)
