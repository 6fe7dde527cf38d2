"""The environment: clocks, threads, timers, time slices and free space, handed to queues and journals.

Nothing here knows a queue, a journal or a socket, and tests hand in an environment of their own.
It stands on the lowest modules alone.
"""
