"""The command line: it reads arguments, starts what they ask for, and sets up the log.

No rule of the server or of a queue lives here.
It stands on `darner.server` and `darner.repair`, and nothing imports it but `darner.__main__`.
"""
