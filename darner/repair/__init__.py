"""Check and repair of a data directory that no server has.

Nothing of a running server lives here.
It stands on `darner.queues` and all below, beside `darner.wire`.
"""
