"""The queues: strict FIFOs, where a set goes and a fetch comes from, and what is done to all of them.

No socket, no event loop and no clock of its own lives here: an environment is handed in.
It stands on `darner.journal` and all below.
"""
