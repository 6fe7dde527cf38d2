"""LevelDB under the name its binding has here: plyvel up to Python 3.12, plyvel-next from 3.13."""

import sys

if sys.version_info >= (3, 13):
    import plyvel_next as plyvel  # type: ignore[import-not-found,unused-ignore]
else:
    import plyvel  # type: ignore[import-untyped,unused-ignore]

DB = plyvel.DB
Error = plyvel.Error
repair_db = plyvel.repair_db

__all__ = ["DB", "Error", "is_damage", "reason", "repair_db"]

# What LevelDB says of a table that is cut short, and of one that is not there.
_DAMAGE = ("Invalid argument", "No such file or directory")


def reason(error: Exception) -> str:
    """What an error says; LevelDB's have bytes."""
    text = error.args[0] if error.args else ""
    return text.decode(errors="replace") if isinstance(text, bytes) else str(error)


def is_damage(error: BaseException | None) -> bool:
    """Whether an error says that a file is damaged; else it may pass."""
    if not isinstance(error, Error):
        return False
    return isinstance(error, plyvel.CorruptionError) or any(text in reason(error) for text in _DAMAGE)
