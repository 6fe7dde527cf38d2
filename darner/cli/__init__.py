"""The command line: it reads arguments, starts what they ask for, and sets up the log.

No rule of the server or of a queue lives here.
It stands on all floors below, loads of them what a command needs, and nothing imports it but
`darner.__main__`.
"""
