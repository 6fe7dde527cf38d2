"""The compiled modules, which setuptools has Cython translate; everything else is in pyproject.toml."""

import sys
from pathlib import Path

from Cython.Compiler import Options
from setuptools import Extension, setup
from setuptools.command.build_py import build_py

# They are 2 % of the wheel, and the sources have them.
Options.docstrings = False

# Modules in Python that are compiled as well, by name; each has a .pxd beside it, which gives the types.
PYTHON_MODULES = (
    "environment.timeline",
    "journal.batch",
    "journal.journal",
    "journal.live_ids",
    "journal.reading",
    "journal.records",
    "queues.counts",
    "queues.item_window",
    "queues.limits",
    "queues.queue",
    "queues.reservations",
    "wire.connection",
    "wire.counters",
    "wire.holds",
    "wire.sending",
    "wire.commands.fetching",
    "wire.commands.storing",
)

# Where requests pass through most of a module. The others are made small: a third of the wheel, for 0.02 us a
# request.
FAST_MODULES = (
    "_proto",
    "_records",
    "wire.counters",
    "wire.connection",
    "wire.commands.storing",
    "wire.commands.fetching",
)

SOURCES = {name: f"darner/{name}.pyx" for name in ("_proto", "_records")} | {
    name: f"darner/{name.replace('.', '/')}.py" for name in PYTHON_MODULES
}


class BuildWithoutSources(build_py):
    """Leaves out of the wheel the Python that is compiled: 5 % of it, and nothing would load it."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """Return package, name and file of each module that is not compiled."""
        found = super().find_package_modules(package, package_dir)
        return [each for each in found if each[2] not in SOURCES.values()]


setup(
    cmdclass={"build_py": BuildWithoutSources},
    ext_modules=[
        Extension(
            f"darner.{name}",
            [source],
            depends=sorted(map(str, Path("darner").rglob("*.pxd"))),
            # -g0: debug symbols are most of the size, and name the directory of the build
            extra_compile_args=[
                "-O2" if name in FAST_MODULES else "-Oz",
                # calls into Python go straight through a table: 2 % of the wheel, and faster
                "-fno-plt",
                # the wheel compresses them better
                "-DCYTHON_COMPRESS_STRINGS=0",
                "-fno-inline-functions-called-once",
                # classes that are made from a table: 2 % of the wheel
                *([] if name in FAST_MODULES else ["-DCYTHON_USE_TYPE_SPECS=1"]),
                # 5 % of the wheel, and no slower
                *(["-finline-limit=40"] if name in PYTHON_MODULES else []),
                "-g0",
                "-fno-asynchronous-unwind-tables",
                # an error from gcc 14 on
                "-Werror=incompatible-pointer-types",
            ],
            # nor does anybody need the names of static functions
            extra_link_args=["-s"] if sys.platform == "linux" else [],
        )
        for name, source in SOURCES.items()
    ],
)
