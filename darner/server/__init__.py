"""The process: it starts, listens, serves, reloads, drains and closes.

No command and no rule about queues lives here.
It stands on `darner.access` and all below.
"""
