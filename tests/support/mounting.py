"""File systems of their own for tests, in files, which root may mount."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-m", "reflink=1"),
    "btrfs": ("mkfs.btrfs", "-q", "-f", "-m", "single"),
}


def run(*words: object) -> None:
    subprocess.run(list(map(str, words)), check=True, capture_output=True, timeout=60)


@contextlib.contextmanager
def mounted(kind: str, size_mib: int, home: Path, *options: str) -> Iterator[Path]:
    """A file system of this kind and size; the test is skipped where it cannot be made or mounted."""
    image, path = home / f"{kind}.img", home / kind
    path.mkdir()
    if shutil.which(MAKE[kind][0], path="/usr/sbin:/sbin:/usr/bin:/bin") is None:
        pytest.skip(f"{MAKE[kind][0]} is not installed")
    try:
        run("truncate", "-s", f"{size_mib}M", image)
        run(*MAKE[kind], image)
        run("mount", "-o", ",".join(("loop", *options)), image, path)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a {kind} cannot be mounted here: {error}")
    try:
        yield path
    finally:
        run("umount", "--lazy", path)
        image.unlink()


@contextlib.contextmanager
def mounted_image(image: Path, path: Path, *options: str) -> Iterator[None]:
    """The file system that is in a file, at this path."""
    run("mount", "-o", ",".join(("loop", *options)), image, path)
    try:
        yield
    finally:
        run("umount", path)
