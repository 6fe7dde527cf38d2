"""LevelDB under the name its binding has here: plyvel up to Python 3.12, plyvel-next from 3.13."""

import sys

if sys.version_info >= (3, 13):
    import plyvel_next as plyvel  # type: ignore[import-not-found,unused-ignore]
else:
    import plyvel  # type: ignore[import-untyped,unused-ignore]

DB = plyvel.DB
Error = plyvel.Error
repair_db = plyvel.repair_db

__all__ = ["DB", "Error", "repair_db"]
