"""Files of other programs in a data directory, recognised by their names and first bytes.

None is opened as what it may be: LevelDB would change it.
"""

import contextlib
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

# Kestrel's journals are files `work`, `work.1285793415123` and `work.read.0`, new ones `work~~12`, ...
_JOURNAL = re.compile(r"([^./~]+)(\.\d+(?:\.pack)?|\.read\.[^/]*|~~\d*)?")
# ... and begin with one of these operations, or, later, with a head for writers or for readers.
_OPERATIONS = frozenset(range(10))
_HEADS = (b"\x27\x64\x26\x03", b"\x26\x3c\x26\x03")
# What LevelDB has in its directory, and a journal of darner beside it.
_OF_LEVELDB = re.compile(r"CURRENT|MANIFEST-\d+|\d+\.(ldb|sst|log)|LOCK|LOG(\.old)?|blobs|state")
# The name of the keys' order in the manifest of the original darner; and how the LOG of Go's LevelDB begins.
_COMPARATOR = b"queue::comparator"
_GO_LOG = b"====="
_HEAD_BYTES = 100


# The programs as `darner migrate --from` calls them.
ORIGINAL, KESTREL, SIBERITE = "darner", "kestrel", "siberite"
# ... and as people call them.
TITLES = {ORIGINAL: "the original darner", KESTREL: "Kestrel", SIBERITE: "siberite"}


class Owner(NamedTuple):
    """Whose file or directory something is, in words, and what that program is to `darner migrate --from`."""

    what: str
    program: str


def owner(path: Path) -> Owner | None:
    """Return whose file or directory this is, None if it is not known as another program's."""
    with contextlib.suppress(OSError):
        return _directory_owner(path) if path.is_dir() else _file_owner(path)
    return None


def owner_of_all(data: Path) -> str:
    """Return the program, as `darner migrate --from` calls it, whose data directory this is: whose half of
    what is in there is, at least; "" if there is none."""
    try:
        entries = [entry for entry in data.iterdir() if not entry.name.startswith(".")]
    except OSError:
        return ""
    found = Counter(known.program for entry in entries if (known := owner(entry)) is not None)
    return next((program for program, number in found.most_common(1) if 2 * number >= len(entries)), "")


def is_of_leveldb(name: str) -> bool:
    """Return whether a file or directory of this name may be in a queue's directory."""
    return _OF_LEVELDB.fullmatch(name) is not None


def _directory_owner(path: Path) -> Owner | None:
    names = {entry.name for entry in path.iterdir()}
    if "_.metadata" in names or (path.name in names and (path / path.name / "CURRENT").exists()):
        return Owner("a queue of siberite", SIBERITE)
    if "LOG" in names and _read_head(path / "LOG").startswith(_GO_LOG):
        return Owner("a queue of siberite (a LevelDB of Go)", SIBERITE)
    manifests = (name for name in names if name.startswith("MANIFEST-"))
    if any(_COMPARATOR in _read_head(path / name) for name in manifests):
        what = f"a queue of the original darner (a LevelDB with the comparator {_COMPARATOR.decode()})"
        return Owner(what, ORIGINAL)
    return None


def _file_owner(path: Path) -> Owner | None:
    named = _JOURNAL.fullmatch(path.name)
    if named is None or not path.is_file():
        return None
    head = _read_head(path)
    queue, suffix = named.groups()
    # else its name tells, if there are others of that queue
    is_journal = head.startswith(_HEADS) or (bool(head) and head[0] in _OPERATIONS)
    others = queue if suffix else f"{queue}.[0-9]*"
    return Owner("a journal of Kestrel", KESTREL) if is_journal or any(path.parent.glob(others)) else None


def _read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)
