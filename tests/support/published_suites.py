"""The tests that kombu, Celery and Dramatiq publish, taken from their source packages.

They are run by a pytest of their own. Nothing of them is in this repository; a cache directory has them,
by package and version.
"""

import contextlib
import os
import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "darner-tests"
PASSED = "passed"
TRIES = 3


class Outcome(NamedTuple):
    """How one test has ended: passed, skipped, failure or error; and what it said."""

    word: str
    said: str


# By the test's name: module::class::function.
Outcomes = dict[str, Outcome]


def published(package: str, folder: str = "t") -> Path:
    """Return a directory with this folder of the installed version's source package; skip the test without
    it."""
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    directory = CACHE / f"{package}-{version}"
    if not directory.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        _fetch(package, version, folder, directory)
    return directory


def _fetch(package: str, version: str, folder: str, directory: Path) -> None:
    """Have pip download the source package, and keep its tests."""
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
        done = subprocess.run(
            [*command, "--no-binary", ":all:", "--dest", scratch, f"{package}=={version}"],
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1:]
            pytest.skip(f"the source package of {package} {version} is not to be had: {''.join(reason)}")
        (archive,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            tests = [one for one in packed if one.name.split("/")[1:2] == [folder]]
            packed.extractall(scratch, tests, filter="data")
        with contextlib.suppress(OSError):  # another process may have been quicker
            (Path(scratch) / f"{package}-{version}").rename(directory)


def run_suite(
    directory: Path, scratch: Path, *words: str | Path, seconds: float, **environment: str
) -> Outcomes:
    """Run tests of `directory` in a pytest of their own; `scratch` gets its files.

    Those that fail are run again, as their authors do: on a busy machine some are too late.
    """
    settings, report = scratch / "pytest.ini", scratch / "report.xml"
    settings.write_text(f"[pytest]\npython_classes = test_* Test*\ncache_dir = {scratch / 'cache'}\n")
    # each process gets the schemes of darner's URLs, those too that the tests start
    (scratch / "sitecustomize.py").write_text("import darner.kombu\n")
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment["PYTHONPATH"] = f"{scratch}:{directory}"
    outcomes: Outcomes = {}
    for _ in range(TRIES):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-c", settings, "--rootdir", directory, "--last-failed",
             "--timeout", "120", "--junitxml", report, *words],
            cwd=directory, env=os.environ | environment, timeout=seconds, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        # 0: all passed, 1: some did not
        assert done.returncode in (0, 1), done.stdout[-10_000:]
        outcomes |= _outcomes(report)
        if not done.returncode:
            break
    return outcomes


def _outcomes(report: Path) -> Outcomes:
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        owner = case.get("classname", "").removeprefix("t.integration.")
        name = f"{owner.replace('.', '::')}::{case.get('name')}"
        end = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        said = "" if end is None else f"{end.get('message', '')}\n{end.text or ''}"
        found[name] = Outcome(PASSED if end is None else end.tag, said)
    return found


def failed(outcomes: Outcomes) -> dict[str, str]:
    """Return what did not pass and was not skipped, with what it said."""
    return {name: one.said for name, one in outcomes.items() if one.word not in (PASSED, "skipped")}
