"""Access: which clients get in, how they log in, and what each user may do.

No command is carried out here.
It stands on `darner.wire` and all below.
"""
