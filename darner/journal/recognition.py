"""What a queue's directory holds: nothing yet, a journal of darner, a damaged one, or another program's
files."""

from pathlib import Path
from typing import Any

from darner.errors import DamagedError, ForeignError
from darner.journal import foreign_files
from darner.journal.layout import is_known_key, may_precede_current
from darner.journal.leveldb import failure


def is_new(path: Path) -> bool:
    """Return whether a journal is to be created in this directory.

    Raises JournalError if there is something else than a journal.
    """
    # With create_if_missing LevelDB takes a directory without CURRENT for a new one and deletes the
    # tables in it (seen in 1.22 and 1.23): only an absent or empty one is new, or one whose creation
    # was cut off, by a full disk or a kill.
    try:
        if (path / "CURRENT").is_file():
            return False
        files = list(path.iterdir()) if path.exists() else []
    except NotADirectoryError:
        raise ForeignError(f"{path} is a file, and no directory of a queue") from None
    except OSError as error:
        raise failure(f"cannot open {path}", error) from error
    if all(map(may_precede_current, files)):
        return True
    check_owner(path)
    if any(foreign_files.is_of_leveldb(file.name) for file in files):
        raise DamagedError(f"{path} holds files but no CURRENT. Nothing in it was touched")
    raise ForeignError(f"{path} holds files but no CURRENT, and none of a journal")


def check_owner(path: Path) -> None:
    """Raise ForeignError if a directory is recognised as another program's."""
    if owner := foreign_files.owner(path):
        raise ForeignError(f"{path} is {owner.what}, which darner migrate --from {owner.program} brings over")


def check_empty(db: Any) -> None:
    """Raise if a LevelDB without a state is not empty: ForeignError if it is not a journal's, else
    ValueError."""
    first = next(iter(db.iterator(include_value=False)), None)
    if first is not None and not is_known_key(first):
        raise ForeignError("it is a LevelDB, and no journal of darner")
    if first is not None:
        raise ValueError("it has records but no state: it is damaged or no journal of darner")
