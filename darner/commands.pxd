# cython: language_level=3
"""The types of commands.py where requests pass through it."""

cimport cython

from darner._proto cimport Item, Request, new_item, value
from darner.connection cimport Connection
from darner.queue cimport Queue
from darner.stats cimport Counters


@cython.locals(queues=dict, queue=Queue)
cpdef set_(Connection connection, Request request)
@cython.locals(queues=dict, queue=Queue, item=Item)
cpdef get(Connection connection, Request request)
cdef _stored(Connection connection, Queue queue, Request request)
cdef Queue _queue(Connection connection, Request request)
cdef Item _fetch(Connection connection, Request request, Queue queue)
@cython.locals(counters=Counters)
cdef _answer(Connection connection, Request request, Queue queue, Item item, bint one_of_many=*)
@cython.locals(out=list, key=bytes, reply=bytes)
cdef send_item(Connection connection, Request request, Queue queue, Item item, bint one_of_many=*)
