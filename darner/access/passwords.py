"""Hashes of passwords: scrypt, written as PHC strings (`$scrypt$ln=14,r=8,p=1$salt$digest`)."""

import base64
import hashlib
import hmac
import os
import re

import msgspec

# The cost that the authors of scrypt give for interactive logins: 16 MiB and some 30 ms.
LOG2_N, R, P = 14, 8, 1
SALT_BYTES = 16
HASH_BYTES = 32
# The most memory that one check may take, whatever cost a hash states.
MAX_MEMORY_BYTES = 64 << 20

HASH = re.compile(r"\$scrypt\$ln=(\d{1,2}),r=(\d{1,2}),p=(\d{1,2})\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)")


class _Hash(msgspec.Struct, frozen=True):
    """A digest of a password, with the salt and the cost at which it was computed."""

    log2_n: int
    r: int
    p: int
    salt: bytes
    digest: bytes

    @classmethod
    def parse(cls, text: str) -> "_Hash":
        """Read a hash. Raises ValueError, which says what is wrong with the text."""
        match = HASH.fullmatch(text)
        if match is None:
            raise ValueError("the password is no hash; write it with `darner passwd`")
        log2_n, r, p = map(int, match.groups()[:3])
        if not (log2_n and r and p) or 128 * r * ((1 << log2_n) + p) > MAX_MEMORY_BYTES // 2:
            raise ValueError("the password is hashed at a cost that is not taken")
        try:
            return cls(log2_n, r, p, _unbase64(match[4]), _unbase64(match[5]))
        except ValueError:
            raise ValueError("the hash of the password is damaged") from None

    def digest_of(self, password: bytes) -> bytes:
        """Return the digest of a password with the salt and the cost of this one."""
        return hashlib.scrypt(
            password, salt=self.salt, n=1 << self.log2_n, r=self.r, p=self.p,
            maxmem=MAX_MEMORY_BYTES, dklen=len(self.digest),
        )  # fmt: skip


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


def _unbase64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


# The hash that an unknown user's password is checked against, so that this takes as long as a known one's.
_NOBODY = _Hash(LOG2_N, R, P, bytes(SALT_BYTES), bytes(HASH_BYTES))


def hash_password(password: bytes) -> str:
    """Return a salted hash of `password`. Takes some 30 ms, without the GIL."""
    salt = os.urandom(SALT_BYTES)
    digest = _Hash(LOG2_N, R, P, salt, bytes(HASH_BYTES)).digest_of(password)
    return f"$scrypt$ln={LOG2_N},r={R},p={P}${_base64(salt)}${_base64(digest)}"


def check_hash(text: str) -> None:
    """Raise ValueError if a text is no hash of a password, or one that costs too much to check."""
    _Hash.parse(text)


def is_password(password: bytes, hashed: str | None) -> bool:
    """Return whether a hash is that of `password`. None, for an unknown user, is of no password, and takes as
    long: some 30 ms, without the GIL."""
    known = _NOBODY if hashed is None else _Hash.parse(hashed)
    return hmac.compare_digest(known.digest_of(password), known.digest) and hashed is not None
