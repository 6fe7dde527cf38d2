"""Who may log in, and what each user may do: the `auth_file`.

It is TOML, a table a user:

    [alice]
    password = "$scrypt$ln=14,r=8,p=1$…"    # written by `darner passwd`
    read = ["work", "mail.*"]               # the queues she may get from; each * is any run of bytes. Of a
                                            # child, such as "work+audit", the parent must be allowed, too
    write = ["*"]                           # may set to
    manage = []                             # may delete and flush
    admin = false                           # everything: all queues, and what concerns the whole server

What a key leaves out is not allowed. No socket, no event loop and no clock in here.
"""

import base64
import hashlib
import hmac
import os
import re
import stat
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

import msgspec
import structlog
import tomlkit

from darner._proto import Request, Verb
from darner.config.kinds import COMMANDS, NAME_RULE
from darner.config.kinds import NAME as _GLOB
from darner.errors import ConfigError

log = structlog.get_logger()

# What the authors of scrypt give for interactive logins: 16 MiB and some 30 ms.
LOG2_N, R, P = 14, 8, 1
SALT_BYTES = 16
HASH_BYTES = 32
# What one check may take, whatever the file says.
MAX_MEMORY_BYTES = 64 << 20

HASH = re.compile(r"\$scrypt\$ln=(\d{1,2}),r=(\d{1,2}),p=(\d{1,2})\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)")
# One word on the wire, and nothing that needs care in a log or a shell.
NAME = re.compile(r"[A-Za-z0-9_.@+-]{1,64}")


class User(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A user's table in the file."""

    # scrypt's, in the form of a PHC string
    password: str
    # the queues to get from, to set to, to delete and flush: names, each `*` for any run of bytes
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    manage: tuple[str, ...] = ()
    # whether everything is allowed
    admin: bool = False


Users = dict[str, User]


def check_name(name: str) -> None:
    """Raises ConfigError if no user can be called that."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"bad user name {name!r}: it must be 1 to 64 letters, digits and _ . @ + -")


def load(path: Path) -> Users:
    """Read the users from `path`. Raises ConfigError, which says what is wrong and where."""
    try:
        text = path.read_text()
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the auth_file {path}: {_reason(error)}") from error
    try:
        users = {name: _user(name, table) for name, table in tomllib.loads(text).items()}
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        log.warning("others may read the auth_file", file=str(path), action=f"chmod 600 {path}")
    if not users:
        log.error(
            "the auth_file has no users: nobody can log in", file=str(path), action="darner passwd adds one"
        )
    for name, user in users.items():
        reads = _pattern(user.read)
        if useless := [
            glob
            for glob in user.read
            if "*" not in (parent := _parent_of(glob.encode()).decode())
            and parent
            and not _allows(reads, parent.encode())
        ]:
            log.warning(
                "a child in the auth_file cannot be read, for its parent cannot",
                file=str(path), user=name, queue=" ".join(useless),
                action="let the user read the parent, too, or take the child out",
            )  # fmt: skip
        for key in ("read", "write", "manage"):
            if idle := [glob for glob in getattr(user, key) if not _GLOB.fullmatch(glob.encode())]:
                log.warning(
                    "a pattern in the auth_file matches no queue",
                    file=str(path), user=name, key=key, pattern=" ".join(map(repr, idle)),
                    action=f"the name of a queue has {NAME_RULE}",
                )  # fmt: skip
    return users


def _reason(error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"it is not UTF-8: {error.reason} at byte {error.start}"


def _user(name: str, table: object) -> User:
    check_name(name)
    try:
        user = msgspec.convert(table, User)
        _Hash.parse(user.password)
    except ValueError as error:  # msgspec's are some, too
        raise ConfigError(f"user {name}: {error}") from error
    return user


# Passwords


class _Hash(msgspec.Struct, frozen=True):
    """What scrypt made of a password, and from what."""

    log2_n: int
    r: int
    p: int
    salt: bytes
    digest: bytes

    @classmethod
    def parse(cls, text: str) -> "_Hash":
        """Raises ValueError, which says what is wrong with the text."""
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
        """What scrypt makes of this password under the same terms."""
        return hashlib.scrypt(
            password, salt=self.salt, n=1 << self.log2_n, r=self.r, p=self.p,
            maxmem=MAX_MEMORY_BYTES, dklen=len(self.digest),
        )  # fmt: skip


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


def _unbase64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


# Nobody's: an unknown user's password is checked against it, so that it takes as long as a known one's.
_NOBODY = _Hash(LOG2_N, R, P, bytes(SALT_BYTES), bytes(HASH_BYTES))


def hash_password(password: bytes) -> str:
    """Return a salted hash of `password`. Takes some 30 ms without the GIL."""
    salt = os.urandom(SALT_BYTES)
    digest = _Hash(LOG2_N, R, P, salt, bytes(HASH_BYTES)).digest_of(password)
    return f"$scrypt$ln={LOG2_N},r={R},p={P}${_base64(salt)}${_base64(digest)}"


def check(user: User | None, password: bytes) -> bool:
    """Whether that is the user's password; None has none, and takes as long. Some 30 ms without the GIL."""
    known = _NOBODY if user is None else _Hash.parse(user.password)
    return hmac.compare_digest(known.digest_of(password), known.digest) and user is not None


def set_password(path: Path, name: str, password: bytes) -> bool:
    """Write a user's password into the file at `path`, made if missing; returns whether the user is new.

    A new user may read, write and manage every queue. All else in the file stays as it is, comments
    included; the file is replaced in one step, and then its owner alone may read it. Raises ConfigError.
    """
    check_name(name)
    if not password:
        raise ConfigError("the password is empty")
    # a link stays one
    path = path.resolve()
    try:
        document = tomlkit.parse(path.read_text()) if path.exists() else tomlkit.document()
        is_new = name not in document
        if is_new:
            user = tomlkit.table()
            user["password"] = ""
            for key in ("read", "write", "manage"):
                user[key] = ["*"]
            document[name] = user
        document[name]["password"] = hash_password(password)
        _replace(path, tomlkit.dumps(document))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot write the auth_file {path}: {_reason(error)}") from error
    except (tomlkit.exceptions.TOMLKitError, TypeError) as error:
        raise ConfigError(f"{path} is no auth_file: {error}") from error
    return is_new


def _replace(path: Path, text: str) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "w") as file:  # noqa: PTH123  # mkstemp made it 0600
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            owner = path.stat()
            os.chown(name, owner.st_uid, owner.st_gid)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


# Permissions


def _refusal(what: str) -> bytes:
    return f"CLIENT_ERROR not permitted to {what}\r\n".encode()


READ = _refusal("read this queue")
WRITE = _refusal("write to this queue")
MANAGE = _refusal("manage this queue")
ADMIN = _refusal("do that: it takes an admin")
DENIED = _refusal("do that: the server denies it (deny)")

# What anyone may ask who has logged in, and what only says what the parser made of the bytes. A verb
# that is neither here nor in `Guard.refusal` takes an admin.
OPEN_TO_ALL = frozenset(
    (
        Verb.VERSION, Verb.QUIT, Verb.REFUSED, Verb.FATAL, Verb.GET_END, Verb.BINARY, Verb.TLS, Verb.HTTP,
        Verb.MN, Verb.ME,
    )
)  # fmt: skip


# The verbs of each command that `deny` may name.
VERBS = {word: frozenset((Verb[word.upper()],)) for word in COMMANDS}
VERBS["set"] |= {Verb.SET_BEGIN, Verb.SET_CHUNK, Verb.SET_END}


def denied_verbs(words: Iterable[str]) -> frozenset[Verb]:
    """Return what the setting `deny` refuses by these words."""
    return frozenset(verb for word in words for verb in VERBS[word])


class Guard:
    """What one connection may do: its user's permissions, less what the server denies to all but admins."""

    __slots__ = ("_denied", "_manages", "_reads", "_refuses_item", "_writes", "name", "user")

    def __init__(self, name: str, user: User | None, denied: frozenset[Verb] = frozenset()) -> None:
        """Without a user everything is allowed that is not denied."""
        self.name = name
        self._denied = denied
        self.user = user
        self._reads = _pattern(user.read if user is not None else ())
        self._writes = _pattern(user.write if user is not None else ())
        self._manages = _pattern(user.manage if user is not None else ())
        # whether the chunks that come are of an item that is refused
        self._refuses_item = False

    def refusal(self, request: Request) -> bytes | None:
        """The error to answer this request with; None if it is allowed, empty if no answer is due yet."""
        user = self.user
        if user is not None and user.admin:
            return None
        verb = request.verb
        if verb in self._denied:
            # of a large item, only its end is answered
            return b"" if verb in (Verb.SET_BEGIN, Verb.SET_CHUNK) else DENIED
        return None if user is None else self._not_permitted(request, user)

    def _not_permitted(self, request: Request, user: User) -> bytes | None:
        verb = request.verb
        if verb in (Verb.GET, Verb.GETS):
            allowed = self._may_read(request.queue) and (
                request.rest is None or all(self._may_read(key.queue) for key in request.rest)
            )
            return None if allowed else READ
        if verb in (Verb.SET, Verb.SET_BEGIN):
            if self._may_write(request.queue):
                return None
            self._refuses_item = verb == Verb.SET_BEGIN
            return b"" if self._refuses_item else WRITE
        if verb in (Verb.SET_CHUNK, Verb.SET_END):
            if not self._refuses_item:
                return None
            self._refuses_item = verb == Verb.SET_CHUNK
            return b"" if self._refuses_item else WRITE
        if verb in (Verb.MONITOR, Verb.CONFIRM):
            # without a name, the command says what is missing
            return None if not request.args or self._may_read(request.args[0]) else READ
        if verb in (Verb.DELETE, Verb.FLUSH, Verb.FLUSH_EXPIRED):
            return None if not request.args or _allows_part(self._manages, request.args[0]) else MANAGE
        if verb in OPEN_TO_ALL or (verb == Verb.STATS and request.args != [b"reset"]):
            return None
        return None if verb == Verb.STATUS and not request.args and user.read else ADMIN

    def _may_read(self, name: bytes) -> bool:
        """Whether a queue, a cursor or a child may be read. To name a child is to have what is set on its
        parent, which therefore must be allowed, too."""
        parent = _parent_of(name)
        return _allows_part(self._reads, name) and (not parent or _allows(self._reads, parent))

    def _may_write(self, queue: bytes) -> bool:
        """Whether may be set to a queue or a child. To name a child is to have the parent's items stored once
        more, and its sets refused when the child is full: that takes some right to the parent."""
        parent = _parent_of(queue)
        return _allows(self._writes, queue) and (
            not parent or _allows(self._writes, parent) or _allows(self._reads, parent)
        )


def _pattern(globs: tuple[str, ...]) -> re.Pattern[bytes]:
    any_of = (b".*".join(re.escape(part.encode()) for part in glob.split("*")) for glob in globs)
    # without any, what matches nothing
    return re.compile(b"|".join(any_of) or rb"(?!)", re.DOTALL)


def _allows(pattern: re.Pattern[bytes], queue: bytes) -> bool:
    return pattern.fullmatch(queue) is not None


def _allows_part(pattern: re.Pattern[bytes], name: bytes) -> bool:
    # what is behind a slash is a part of the queue
    return _allows(pattern, name.partition(b"/")[0])


def _parent_of(name: bytes) -> bytes:
    """The queue whose child this is; b"" if it is no child."""
    parent, plus, _ = name.partition(b"/")[0].partition(b"+")
    return parent if plus else b""
