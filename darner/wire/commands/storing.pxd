# cython: language_level=3
"""The types of storing.py where requests pass through it."""

cimport cython

from darner._proto cimport Request
from darner.queues.queue cimport Queue
from darner.wire.connection cimport Connection
from darner.wire.sending cimport Sender


@cython.locals(queue=Queue, sender=Sender)
cpdef set_(Connection connection, Request request)
