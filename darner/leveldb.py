"""LevelDB under the name its binding has here: plyvel up to Python 3.12, plyvel-next from 3.13."""

import os
import sys

if sys.version_info >= (3, 13):
    import plyvel_next as plyvel  # type: ignore[import-not-found,unused-ignore]
else:
    import plyvel  # type: ignore[import-untyped,unused-ignore]

DB = plyvel.DB
Error = plyvel.Error
repair_db = plyvel.repair_db

__all__ = ["DB", "Error", "reason", "repair_db"]


def reason(error: Exception) -> str:
    """What an error says; LevelDB's have bytes."""
    text = error.args[0] if error.args else ""
    # a path in it is what it is elsewhere
    return os.fsdecode(text) if isinstance(text, bytes) else str(error)
