"""LevelDB under one name: plyvel on Python 3.11, plyvel-next from 3.12 on. And what its errors mean."""

import errno
import os
import sys

from darner.errors import DamagedError, ForeignError, JournalError, OutOfServiceError

if sys.version_info >= (3, 12):
    import plyvel_next as plyvel  # type: ignore[import-not-found,unused-ignore]
else:
    import plyvel  # type: ignore[import-untyped,unused-ignore]

DB = plyvel.DB
Error = plyvel.Error
repair_db = plyvel.repair_db

__all__ = ["DB", "Error", "failure", "is_damage", "reason", "repair_db"]

# Words in LevelDB's errors about what it misses or cannot decode.
_DAMAGE = ("Corruption", "Invalid argument", "NotFound", "No such file or directory")


def reason(error: Exception) -> str:
    """Return the text of an error without the system's number."""
    if isinstance(error, JournalError):
        return error.reason
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = error.args[0] if error.args else ""
    # LevelDB's are bytes; a path in them is decoded as elsewhere
    return os.fsdecode(text) if isinstance(text, bytes) else str(error)


def failure(what: str, error: Exception) -> JournalError:
    """Return an error that says `what` and why, of the class that says what can be done about it.

    What cannot be decoded is damaged, unless it is a later darner's or another program's.
    """
    text = f"{what}: {reason(error)}"
    if isinstance(error, OSError) and error.filename is not None and str(error.filename) not in text:
        text += f": {error.filename}"
    if isinstance(error, OutOfServiceError):
        return type(error)(text)
    if isinstance(error, OSError):
        return ForeignError(text) if error.errno == errno.ENOTDIR else JournalError(text)
    if "comparator" in text:
        return ForeignError(text)
    if isinstance(error, ValueError) or any(words in text for words in _DAMAGE):
        return DamagedError(text)
    return JournalError(text)


def is_damage(error: BaseException | None) -> bool:
    """Return whether an error of LevelDB's says that a file is damaged; any other may pass."""
    return isinstance(error, Error) and any(words in reason(error) for words in _DAMAGE)
