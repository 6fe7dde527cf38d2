"""The journals: what is live of each queue, in the log and in LevelDB.

Nothing here decides what a queue does, and nothing knows a socket, an event loop or a clock of its own.
It stands on `darner.environment` and all below.
"""
