"""The commands: one small function a verb, and the table of them.

A function asks the queues and adds its reply to `connection.sender.replies`; it writes to no socket.
It stands on the connection, which is handed the table and does not import it.
"""
