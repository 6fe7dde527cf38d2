"""What the limited API costs: the compiled modules of the lowest floor with and without it, in turn.

One wheel for all versions of CPython is worth up to 3 percent of speed. docs/releasing.md has the outcome.
Run it with an interpreter that has Cython and setuptools: `.venv/bin/python wheels/limited_api.py`.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

PACKAGE = Path(__file__).parent.parent / "darner"
# The limited API has these two as functions only.
MACROS = {
    "full": [],
    "limited": [
        ("Py_LIMITED_API", "0x030b0000"),
        ("PyBytes_AS_STRING", "PyBytes_AsString"),
        ("PyBytes_GET_SIZE", "PyBytes_Size"),
    ],
}
SETUP = """
from Cython.Build import cythonize
from setuptools import Extension, setup

setup(ext_modules=cythonize([
    Extension(
        f"darner.{{name}}", [f"darner/{{name}}.pyx"], extra_compile_args=["-O2", "-g0"],
        define_macros={macros}, py_limited_api={limited},
    )
    for name in ("_records", "_proto")
]))
"""
MEASURE = """
from time import process_time
from darner import _proto, _records

data = b"x" * 64
stream = (b"set work 0 0 64\\r\\n" + data + b"\\r\\n" + b"get work/open/close/t=100\\r\\n") * 250
state = _records.State(1, 1)
items = [_records.Item(id, 0, 0, 1_700_000_000_000, data) for id in range(1000)]
parser = _proto.Parser()

def parse():
    parser.feed(stream)
    for request in parser:
        request.verb, request.queue, request.data, request.open

def reply():
    for item in items:
        _proto.value(b"work", item, True, True)

def record():
    for item in items:
        key = _records.item_key(item.id)
        _records.decode_item(key, _records.encode_item(item))

def states():
    for _ in range(500):
        _records.decode_state(_records.encode_state(state))

for part in (parse, reply, record, states):
    part()
    best = 1e9
    for _ in range(5):
        start = process_time()
        for _ in range(60):
            part()
        best = min(best, process_time() - start)
    print(part.__name__, best)
"""


def build(where: Path, kind: str) -> Path:
    """Compile the extensions in their own directory; returns that."""
    package = where / kind / "darner"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for name in ("_records.pyx", "_records.pxd", "_proto.pyx", "_proto.pxd", "errors.py", "meta.py"):
        (package / name).write_bytes((PACKAGE / name).read_bytes())
    setup = SETUP.format(macros=MACROS[kind], limited=kind == "limited")
    (where / kind / "setup.py").write_text(setup)
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    subprocess.run(command, cwd=where / kind, check=True, capture_output=True)
    return where / kind


def measure(built: Path) -> dict[str, float]:
    """Seconds of processor time for each part, in a process of its own."""
    command = [sys.executable, "-c", MEASURE]
    done = subprocess.run(command, cwd=built, check=True, capture_output=True, text=True)
    return {part: float(seconds) for part, seconds in map(str.split, done.stdout.splitlines())}


def main() -> None:
    """Build both, measure both in turn, print the ratio of each part."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=9)
    rounds = arguments.parse_args().rounds
    with tempfile.TemporaryDirectory() as directory:
        built = {kind: build(Path(directory), kind) for kind in MACROS}
        for kind, where in built.items():
            for extension in (where / "darner").glob("*.so"):
                print(f"{kind}: {extension.name}, {extension.stat().st_size} bytes")
        ratios: dict[str, list[float]] = {}
        for number in range(rounds):
            order = sorted(built, reverse=number % 2 == 1)
            seconds = {kind: measure(built[kind]) for kind in order}
            for part, full in seconds["full"].items():
                ratios.setdefault(part, []).append(seconds["limited"][part] / full)
            total = sum(seconds["limited"].values()) / sum(seconds["full"].values())
            ratios.setdefault("all", []).append(total)
    print(f"time with the limited API / without, {rounds} rounds: median (least to greatest)")
    for part, of_part in ratios.items():
        print(f"  {part:8}{median(of_part):.2f} ({min(of_part):.2f} to {max(of_part):.2f})")


if __name__ == "__main__":
    main()
