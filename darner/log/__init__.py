"""The log: how events become lines on standard error, of the server and of a worker alike.

No event is named in here.
It stands on `darner.printable` alone, and the command lines are what sets it up.
"""
