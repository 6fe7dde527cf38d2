"""The compiled modules, which setuptools has Cython translate; everything else is in pyproject.toml."""

import ast
import io
import sys
import tokenize
from pathlib import Path

from Cython.Compiler import Options
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
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


# Floors whose docstrings and comments the wheel does without, a tenth of it: no user calls what is there.
BARE_FLOORS = tuple(
    f"darner/{floor}/"
    for floor in (
        "access",
        "environment",
        "jetstream",
        "journal",
        "kombu",
        "log",
        "migrate",
        "queues",
        "repair",
        "server",
        "tools",
        "web",
        "wire",
    )
)


def bare(source: str) -> str:
    """Return Python without its docstrings and comments; each line keeps its number, for tracebacks."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            if ast.get_docstring(node, clean=False) is not None and first.end_lineno is not None:
                lines[first.lineno - 1] = " " * first.col_offset + '""'
                lines[first.lineno : first.end_lineno] = [""] * (first.end_lineno - first.lineno)
    for token in tokenize.generate_tokens(io.StringIO("\n".join(lines)).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip()
    return "\n".join(lines) + "\n"


class BuildWithoutSources(build_py):
    """Leaves out of the wheel the Python that is compiled: 5 % of it, and nothing would load it."""

    def build_module(
        self, module: str | list[str], module_file: str, package: str | list[str]
    ) -> tuple[str, bool]:
        """Copy a module into the wheel."""
        copied: tuple[str, bool] = super().build_module(module, module_file, package)
        if str(module_file).startswith(BARE_FLOORS):
            path = Path(copied[0])
            path.write_text(bare(path.read_text()))
        return copied

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """Return package, name and file of each module that is not compiled."""
        found = super().find_package_modules(package, package_dir)
        return [each for each in found if each[2] not in SOURCES.values()]


class BuildWithoutRunpath(build_ext):
    """Links modules without a RUNPATH: a CPython of pyenv asks for one, to where its own libraries are."""

    def build_extensions(self) -> None:
        """Compile and link all modules."""
        linker = self.compiler.linker_so
        self.compiler.linker_so = [word for word in linker if not word.startswith("-Wl,-rpath,")]
        super().build_extensions()


setup(
    cmdclass={"build_ext": BuildWithoutRunpath, "build_py": BuildWithoutSources},
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
                # Debian's CPython asks for the strong one, a hundredth of the wheel, and pyenv's for none
                "-fstack-protector",
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
