"""Load generators, the servers they load, and the options of a command line that loads one.

Nothing here compares servers or starts one. It stands on no other folder.
"""
