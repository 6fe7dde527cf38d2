"""Which segments of the log are needed, as the name of an empty file: `needed-3,5-7+9`.

That name says: 3, 5 to 7, and 9 and all later segments that are there. So a segment that is missing is told
from one that was deleted. A rename changes it in one step, and a directory keeps the order of renames without
a sync.
"""

import contextlib
import errno
import itertools
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

NEEDED_PREFIX = "needed-"
# What every file system takes for a name; beyond that a segment in the middle stays until others have gone.
NEEDED_BYTES = 200
# More than any disk has: a name that says more is not darner's.
MAX_SEGMENTS = 1 << 20


class NeededSegments:
    """The numbers of the needed segments, kept in the name of a file in the log's directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path: Path | None = None
        self._numbers: set[int] = set()
        # from this number on every segment that is there is needed
        self._later = 1
        # threads change the name one after the other
        self._naming = threading.Lock()

    def read(self) -> tuple[set[int], int] | None:
        """Return the needed numbers, and the number from which on every segment there is needed. None if
        there is no such file."""
        for path in self._directory.glob(f"{NEEDED_PREFIX}*"):
            with contextlib.suppress(ValueError):  # not darner's
                found = _decode(path.name)
                self._path = path
                return found
        return None

    def reset(self, numbers: Iterable[int], later: int) -> None:
        """Take these numbers, and all from `later` on, for needed. The file is not renamed yet."""
        self._numbers, self._later = set(numbers), later

    def add(self, number: int) -> None:
        """Add a segment that is later than all others. Once the file is renamed it is missed if it is not
        there."""
        self._numbers.add(number)
        self._later = number + 1

    def remove(self, numbers: Iterable[int]) -> None:
        """Remove these numbers and rename the file; from any thread. Raises OSError if it cannot be renamed:
        then they are still needed."""
        removed = self._numbers.intersection(numbers)
        self._numbers -= removed
        try:
            self.write()
        except OSError:
            self._numbers |= removed
            raise

    def write(self) -> None:
        """Rename the file to what is needed now, or create it; from any thread. Raises OSError."""
        with self._naming:
            # copied in one step, for another thread may add to it
            name = _encode(sorted(self._numbers.copy()), self._later)
            if len(name) > NEEDED_BYTES:
                raise OSError(errno.ENAMETOOLONG, "too many gaps between the segments that are needed")
            path = self._directory / name
            if path == self._path:
                return
            try:
                if self._path is None:
                    raise FileNotFoundError
                self._path.rename(path)
            except FileNotFoundError:  # at the first start, or somebody has deleted it
                path.touch(mode=0o600)
            self._path = path

    def delete(self) -> None:
        """Delete the file, when there is no segment left. Raises OSError."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None


def _encode(numbers: Sequence[int], later: int) -> str:
    ranges = []
    for _, run in itertools.groupby(enumerate(numbers), lambda entry: entry[1] - entry[0]):
        of_run = [number for _, number in run]
        ranges.append("-".join(str(number) for number in dict.fromkeys((of_run[0], of_run[-1]))))
    return f"{NEEDED_PREFIX}{','.join(ranges)}+{later}"


def _decode(name: str) -> tuple[set[int], int]:
    ranges, _, later = name.removeprefix(NEEDED_PREFIX).partition("+")
    numbers: set[int] = set()
    for each in ranges.split(",") if ranges else ():
        first, _, last = each.partition("-")
        span = range(int(first), int(last or first) + 1)
        if not 0 < len(span) <= MAX_SEGMENTS:
            raise ValueError(f"no log has {len(span)} segments")
        numbers.update(span)
    return numbers, int(later)
