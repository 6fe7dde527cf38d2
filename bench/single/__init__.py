"""Benches of one darner, which they start themselves on data of its own.

Nothing here is for other servers. It stands on `load` and `suite`.
"""
