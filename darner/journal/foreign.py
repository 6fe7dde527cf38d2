"""What other programs leave in a data directory, told from what is darner's by its name and its first bytes.

Nothing is opened as what it may be: LevelDB would change it.
"""

import contextlib
import re
from pathlib import Path

# Kestrel's journals are files `work`, `work.1285793415123` and `work.read.0`, new ones `work~~12`, ...
_JOURNAL = re.compile(r"([^./~]+)(\.\d+(?:\.pack)?|\.read\.[^/]*|~~\d*)?")
# ... and begin with one of these operations, or, later, with what says who writes and who reads.
_OPERATIONS = frozenset(range(10))
_HEADS = (b"\x27\x64\x26\x03", b"\x26\x3c\x26\x03")
# What LevelDB has in its directory, and a journal beside it.
_OF_LEVELDB = re.compile(r"CURRENT|MANIFEST-\d+|\d+\.(ldb|sst|log)|LOCK|LOG(\.old)?|blobs|state")
# The order of the keys, as a LevelDB has it in its manifest; and how Go's begins its LOG.
_COMPARATOR = b"queue::comparator"
_GO_LOG = b"====="
_HEAD_BYTES = 100


def whose(path: Path) -> str:
    """Return what a file or directory is that is none of darner's, if it can be told; else an empty text."""
    with contextlib.suppress(OSError):
        return _directory(path) if path.is_dir() else _file(path)
    return ""


def is_of_leveldb(name: str) -> bool:
    """Whether a file or directory of this name may be in a queue's directory."""
    return _OF_LEVELDB.fullmatch(name) is not None


def _directory(path: Path) -> str:
    names = {entry.name for entry in path.iterdir()}
    if "_.metadata" in names or (path.name in names and (path / path.name / "CURRENT").exists()):
        return "a queue of siberite"
    if "LOG" in names and _head(path / "LOG").startswith(_GO_LOG):
        return "a queue of siberite (a LevelDB of Go)"
    manifests = (name for name in names if name.startswith("MANIFEST-"))
    if any(_COMPARATOR in _head(path / name) for name in manifests):
        return f"a queue of the original darner (a LevelDB with the comparator {_COMPARATOR.decode()})"
    return ""


def _file(path: Path) -> str:
    named = _JOURNAL.fullmatch(path.name)
    if named is None or not path.is_file():
        return ""
    head = _head(path)
    queue, suffix = named.groups()
    # else its name says it, if there are others of that queue
    is_journal = head.startswith(_HEADS) or (bool(head) and head[0] in _OPERATIONS)
    others = queue if suffix else f"{queue}.[0-9]*"
    return "a journal of Kestrel" if is_journal or any(path.parent.glob(others)) else ""


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)
