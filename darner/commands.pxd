# cython: language_level=3
"""The types of commands.py where requests pass through it."""

from darner._proto cimport Item, Request, new_item, value
from darner.connection cimport Connection
from darner.queue cimport Queue


cpdef set_(Connection connection, Request request)
cpdef get(Connection connection, Request request)
cdef _stored(Connection connection, Queue queue, Request request)
cdef Queue _queue(Connection connection, Request request)
cdef Item _fetch(Connection connection, Request request, Queue queue)
cdef _answer(Connection connection, Request request, Queue queue, Item item, bint one_of_many=*)
cdef send_item(Connection connection, Request request, Queue queue, Item item, bint one_of_many=*)
