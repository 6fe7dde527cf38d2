"""The user of the tests that log in: its password, and the login over the wire."""

from darner.access.passwords import hash_password

FAILED = b"CLIENT_ERROR authentication failure\r\n"
HASH = hash_password(b"pass word")


def login(user: bytes = b"alice", password: bytes = b"pass word", more: bytes = b"") -> bytes:
    """Return the request that logs a user in; `more` comes behind the block's size."""
    return b"set any 0 0 %d%s\r\n%s %s\r\n" % (len(user) + 1 + len(password), more, user, password)
