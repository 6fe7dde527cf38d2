"""Whether another process has a directory of data in use, as far as this system tells."""

import contextlib
import os
from pathlib import Path

_LOCKS = Path("/proc/locks")
_PROCESSES = Path("/proc")


def user_of(directory: Path) -> str:
    """Return in words who has files in this directory open or locked, "" if nobody is known to.

    Whoever has only files open is seen if it is a process of the same user, or for root.
    """
    root = str(directory.resolve()) + os.sep
    for process in _PROCESSES.glob("[0-9]*"):
        if process.name != str(os.getpid()):
            with contextlib.suppress(OSError):  # it is another user's, or has ended
                for file in (process / "fd").iterdir():
                    with contextlib.suppress(OSError):
                        if str(file.readlink()).startswith(root):
                            return f"process {process.name}"
    return "another process" if _is_locked(directory) else ""


def _is_locked(directory: Path) -> bool:
    """Return whether a LevelDB in a directory is locked, whoever has locked it."""
    with contextlib.suppress(OSError):
        locked = {line.split()[-3] for line in _LOCKS.read_text().splitlines() if "->" not in line}
        for file in directory.rglob("LOCK"):
            status = file.stat()
            number = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
            if number in locked:
                return True
    return False
