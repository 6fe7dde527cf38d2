"""File systems of their own for tests, in memory or in a file, which root may mount."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-m", "reflink=1"),
    "btrfs": ("mkfs.btrfs", "-q", "-f", "-m", "single"),
}


def run(*words: object) -> str:
    """Run a command and return its output; CalledProcessError if it fails."""
    done = subprocess.run(list(map(str, words)), check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.strip()


def run_or_skip(*words: object) -> str:
    """Run a command and return its output; skip the test where it is missing or not allowed."""
    try:
        return run(*words)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not allowed here: {' '.join(map(str, words))}: {error}")


@contextlib.contextmanager
def mounted(kind: str, size_mib: int, home: Path, *options: str) -> Iterator[Path]:
    """Make and mount a file system of this kind and size, and yield its path `home/kind`.

    But for a tmpfs it is in the file `home/kind.img`. The test is skipped where it cannot be mounted.
    """
    image, path = home / f"{kind}.img", home / kind
    path.mkdir()
    if kind == "tmpfs":
        options = (f"size={size_mib}m", *options)
        run_or_skip("mount", "-t", "tmpfs", "-o", ",".join(options), "darner-test", path)
    else:
        run_or_skip("truncate", "-s", f"{size_mib}M", image)
        run_or_skip(*MAKE[kind], image)
        run_or_skip("mount", "-o", ",".join(("loop", *options)), image, path)
    try:
        yield path
    finally:
        run("umount", "--lazy", path)
        image.unlink(missing_ok=True)


@contextlib.contextmanager
def mounted_image(image: Path, path: Path, *options: str) -> Iterator[None]:
    """Mount the file system in a file at this path."""
    run("mount", "-o", ",".join(("loop", *options)), image, path)
    try:
        yield
    finally:
        run("umount", path)
