"""The `auth_file`: who may log in, with what password, and what each user may do.

It is TOML, a table for each user:

    [alice]
    password = "$scrypt$ln=14,r=8,p=1$…"    # written by `darner passwd`
    read = ["work", "mail.*"]               # the queues she may get from; each * is any run of bytes. Of a
                                            # child, such as "work+audit", the parent must be allowed, too
    write = ["*"]                           # may set to
    manage = []                             # may delete and flush
    admin = false                           # everything: all queues, and what concerns the whole server

What a key leaves out is not allowed. No socket, no event loop and no clock in here.
"""

import os
import re
import stat
import tempfile
import tomllib
from pathlib import Path

import msgspec
import structlog
import tomlkit

from darner.access.passwords import check_hash, hash_password
from darner.access.patterns import compile_patterns, matches, parent_of
from darner.config.kinds import NAME as PATTERN
from darner.config.kinds import NAME_RULE
from darner.errors import ConfigError

log = structlog.get_logger()

# The name of a user: one word on the wire, and nothing that needs quotes in a log or a shell.
NAME = re.compile(r"[A-Za-z0-9_.@+-]{1,64}")


class User(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A user's table in the file."""

    # the hash of the password
    password: str
    # patterns of the queues that the user may get from, set to, and delete or flush
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    manage: tuple[str, ...] = ()
    # whether everything is allowed
    admin: bool = False


Users = dict[str, User]


def check_name(name: str) -> None:
    """Raise ConfigError if no user can have this name."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"bad user name {name!r}: it must be 1 to 64 letters, digits and _ . @ + -")


def load(path: Path) -> Users:
    """Read the users from the file at `path`, and log what in it has no effect or is dangerous.

    Raises ConfigError, which says what is wrong and where.
    """
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
        _warn_of_patterns(path, name, user)
    return users


def _warn_of_patterns(path: Path, name: str, user: User) -> None:
    """Log which patterns of a user allow nothing."""
    reads = compile_patterns(user.read)
    if useless := [
        pattern
        for pattern in user.read
        if "*" not in (parent := parent_of(pattern.encode()).decode())
        and parent
        and not matches(reads, parent.encode())
    ]:
        log.warning(
            "a child in the auth_file cannot be read, for its parent cannot",
            file=str(path), user=name, queue=" ".join(useless),
            action="let the user read the parent, too, or take the child out",
        )  # fmt: skip
    for key in ("read", "write", "manage"):
        if idle := [pattern for pattern in getattr(user, key) if not PATTERN.fullmatch(pattern.encode())]:
            log.warning(
                "a pattern in the auth_file matches no queue",
                file=str(path), user=name, key=key, pattern=" ".join(map(repr, idle)),
                action=f"the name of a queue has {NAME_RULE}",
            )  # fmt: skip


def _reason(error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return f"it is not UTF-8: {error.reason} at byte {error.start}"


def _user(name: str, table: object) -> User:
    check_name(name)
    try:
        user = msgspec.convert(table, User)
        check_hash(user.password)
    except ValueError as error:  # msgspec's are ValueErrors, too
        raise ConfigError(f"user {name}: {error}") from error
    return user


def set_password(path: Path, name: str, password: bytes) -> bool:
    """Write a user's password into the file at `path`, made if missing; returns whether the user is new.

    A new user may read, write and manage every queue. All else in the file stays as it is, comments
    included. The file is replaced in one step, and is then readable by its owner alone. Raises ConfigError.
    """
    check_name(name)
    if not password:
        raise ConfigError("the password is empty")
    # a symbolic link stays one: what it leads to is replaced
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
