"""The data of other servers brought over: read where it lies, and written to a data directory that no server
has.

Nothing of a running server lives here, and the source is only ever opened to be read. It stands on
`darner.queues` and all below, beside `darner.server`.
"""
