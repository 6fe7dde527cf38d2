"""Check and repair of a data directory that no server has, and backups of any.

Nothing of a running server lives here.
It stands on `darner.queues` and all below, beside `darner.wire`.
"""
