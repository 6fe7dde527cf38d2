"""A server whose wall clock is set, as a test likes; its monotonic clock goes on."""

import mmap
import shutil
import subprocess
import sys
from pathlib import Path

from running import DARNER

COMPILER = shutil.which("cc")
# why there can be none here; "" if there can
WHY_NONE = "" if COMPILER and sys.platform == "linux" else "its library is compiled, and for Linux"


def compiled(directory: Path) -> Path:
    """Compile the library that sets the clock of who preloads it: see clock.c."""
    path = directory / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O", "-Wall", "-Werror", "-o", path, source], check=True)
    return path


class WallClock:
    """The wall clock that the server of `command` reads."""

    def __init__(self, directory: Path, library: Path) -> None:
        stamp = directory / "clock"
        stamp.write_bytes(bytes(8))
        with stamp.open("r+b") as file:
            self._stamp = mmap.mmap(file.fileno(), 8)
        self.command = ("env", f"LD_PRELOAD={library}", f"TEST_CLOCK={stamp}", DARNER)

    def set(self, ahead_s: int) -> None:
        """Set the clock ahead of the real one by so many seconds."""
        self._stamp[:] = ahead_s.to_bytes(8, sys.byteorder, signed=True)
