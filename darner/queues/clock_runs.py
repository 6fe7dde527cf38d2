"""The runs that stamps belong to (see timeline.py), and by how much the stamps of each differ from the wall
clock: the file `.clock` of the data directory.

A run outlives the process: the next process goes on with it if the machine has been up since, and its clock
was not set meanwhile. So a clock that is wrong when the machine starts may be put right at any time.
Otherwise a new run begins, and the stamps of the last run are taken by the wall clock as it is then.
"""

import functools
import secrets
from collections.abc import Callable
from pathlib import Path

import structlog

from darner._records import decode_ids, encode_ids
from darner.environment.offload import Offload, at_once
from darner.environment.timeline import FIRST_RUN, RUNS_END, Clock, Timeline
from darner.errors import StartError
from darner.journal import leveldb
from darner.journal.files import replace_file

log = structlog.get_logger()

FILE_NAME = ".clock"
VERSION = 1
# If the wall clock differs by less after a tick it has drifted, and was not set: no clock drifts by more, and
# times that clients give in seconds can be off by as much anyway.
STEP_MS = 1000
# How many runs the file has in which the clock was set. A machine whose clock stops while it is off has one
# such run at each start.
MAX_EARLIER = 1000
# What a number in the file has to be more than the value it stands for: there it has no sign.
ZERO = 1 << 60


def _log_step(step_ms: int) -> None:
    log.warning(
        "the system's clock was set; what was stored by a relative time keeps that",
        direction="forward" if step_ms > 0 else "back",
        seconds=abs(step_ms) / 1000,
    )


class Runs:
    """The runs of a data directory: the present one, and earlier ones in which the clock was set."""

    def __init__(self, directory: Path, boot: int) -> None:
        """Know no run yet: see `begin`. `boot` is a number below 2 ** 60 that differs for each start of the
        machine, or 0 if it is not known."""
        self._path = directory / FILE_NAME
        self._boot = boot
        self._run = 0
        self._origin_ms = 0
        # of earlier runs in which the clock was set, by how much their stamps are before the wall clock
        self._earlier: dict[int, int] = {}
        # the offset that the file has for the present run; None if it has none
        self._kept_ms: int | None = None
        # whether the file is being written, and whether that failed the last time, which was logged
        self._writing = False
        self._failed = False
        self._times: Timeline | None = None

    def begin(self, wall: Clock, monotonic: Clock | None) -> Timeline:
        """Go on with the last run, or begin another, which `follow` then keeps. Without a monotonic clock
        there are no runs, and stamps are dates. Raises StartError if the file is of a newer darner."""
        if monotonic is None:
            return Timeline(wall)
        origin_ms = wall() - monotonic()
        boot = self.load()
        if self._boot and self._boot == boot and self._is_kept(origin_ms - self._origin_ms):
            self._earlier.pop(self._run, None)
        else:
            self._origin_ms = origin_ms
            self._run, self._kept_ms = 0, None
            while not self._run or self._run in self._earlier:
                self._run = FIRST_RUN + secrets.randbelow(RUNS_END - FIRST_RUN)
        offset_ms = origin_ms - self._origin_ms
        self._times = Timeline(wall, monotonic, self._run, self._origin_ms, offset_ms, self._earlier)
        return self._times

    def load(self) -> int:
        """Read the file; returns the `boot` it was written at, or 0 if it cannot be read. Raises StartError
        if it is of a newer darner."""
        try:
            version, *numbers = decode_ids(self._path.read_bytes())
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            log.error(
                "cannot read by how much the clock was set: what is stored may be early or late by as much",
                file=str(self._path),
                reason=leveldb.reason(error),
            )
            return 0
        if version != VERSION:
            raise StartError(f"{self._path} is of a newer darner, its version is {version}: use that one")
        boot, self._run, origin_ms, *pairs = numbers
        self._origin_ms = origin_ms - ZERO
        self._earlier = {run: ms - ZERO for run, ms in zip(pairs[::2], pairs[1::2], strict=True)}
        self._kept_ms = self._earlier.get(self._run, 0)
        return boot

    def _is_kept(self, offset_ms: int) -> bool:
        return self._kept_ms is not None and abs(offset_ms - self._kept_ms) < STEP_MS

    def follow(self, offload: Offload = at_once) -> None:
        """Take over how the wall clock stands, and keep that in the file. To be called a few times a
        second."""
        if self._times is None:
            return
        step_ms = self._times.look()
        then = functools.partial(_log_step, step_ms) if abs(step_ms) >= STEP_MS else lambda: None
        self._keep(self._times.offset_ms, offload, then)

    def _keep(self, offset_ms: int, offload: Offload, then: Callable[[], None]) -> None:
        """Write the offset of the present run to the file, unless it has that; then call `then`."""
        if self._writing or self._is_kept(offset_ms):
            then()
            return
        known = self._earlier | ({self._run: offset_ms} if abs(offset_ms) >= STEP_MS else {})
        numbers = [VERSION, self._boot, self._run, self._origin_ms + ZERO]
        for run, ms in list(known.items())[-MAX_EARLIER:]:
            numbers += (run, ms + ZERO)
        content = encode_ids(numbers)

        def done(error: Exception | None) -> None:
            self._writing = False
            if error is None:
                self._kept_ms = offset_ms
            elif not self._failed:
                log.error(
                    "cannot keep how the clock stands; tried again by itself",
                    file=str(self._path),
                    reason=leveldb.reason(error),
                    action="make room or repair the disk",
                )
            self._failed = error is not None
            then()

        self._writing = True
        offload(lambda: replace_file(self._path, content), done)
