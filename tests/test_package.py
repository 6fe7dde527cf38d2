"""The package: its version, its metadata, the image. `make wheel` builds a wheel and tries it."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from darner import __version__, _proto, _records
from darner.journal import leveldb

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUP = (ROOT / "setup.py").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def _module(path: Path, package: Path, suffix: str) -> str:
    """Return the dotted name of a file of the package."""
    return str(path.relative_to(package)).removesuffix(suffix).replace("/", ".")


def _room(module: str, layers: dict[str, int]) -> str | None:
    """Where a module lies in one of import-linter's contracts."""
    return next((room for room in layers if module == room or module.startswith(room + ".")), None)


class TestVersion:
    def test_it_is_that_of_the_package(self):
        assert importlib.metadata.version("darner") == __version__

    def test_it_is_written_in_one_place(self):
        assert PROJECT["project"]["dynamic"] == ["version"]
        written = [
            path.name for path in ROOT.glob("darner/**/*.py") if f'"{__version__}"' in path.read_text()
        ]
        assert written == ["_version.py"]

    def test_the_changelog_knows_it_or_what_is_unreleased(self):
        headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
        assert headings[0] == "Unreleased" or headings[0] == __version__
        kinds = re.findall(r"^### (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
        assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


class TestMetadata:
    def test_each_python_has_its_leveldb(self):
        requirements = importlib.metadata.requires("darner")
        assert [r for r in requirements if r.startswith("plyvel")] == [
            'plyvel>=1.5.1; python_version < "3.12"',
            'plyvel-next>=2.1.2; python_version >= "3.12"',
        ]
        expected = "plyvel_next" if sys.version_info >= (3, 12) else "plyvel"
        assert leveldb.DB.__module__.partition(".")[0] == expected

    def test_one_module_imports_leveldb(self):
        importers = [path.name for path in ROOT.glob("darner/**/*.py") if "import plyvel" in path.read_text()]
        assert importers == ["leveldb.py"]

    def test_types_and_the_page_come_along(self):
        assert (ROOT / "darner" / "py.typed").exists()
        expected = ["py.typed", "*.pyi", "web/templates/*.html", "web/static/*"]
        assert PROJECT["tool"]["setuptools"]["package-data"]["darner"] == expected

    @pytest.mark.parametrize("module", [_proto, _records])
    def test_the_stub_names_what_the_extension_has(self, module):
        stub = ast.parse((ROOT / "darner" / f"{module.__name__.removeprefix('darner.')}.pyi").read_text())
        named = {node.name for node in stub.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        named |= {node.target.id for node in stub.body if isinstance(node, ast.AnnAssign)}
        assert named == set(module.__all__)

    def test_what_setup_lists_is_compiled_and_nothing_else(self):
        listed = re.search(r"^PYTHON_MODULES = (\(.*?\))$", SETUP, re.MULTILINE | re.DOTALL)
        modules = {*ast.literal_eval(listed[1])}
        package = Path(_proto.__file__).parent
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        compiled = {_module(path, package, suffix) for path in package.rglob(f"*{suffix}")}
        assert compiled == modules | {"_proto", "_records"}, "`make clean`, and again"
        # by these the Makefile knows what to compile again when it was changed
        types = {_module(path, package, ".pxd") for path in package.rglob("*.pxd")}
        assert types - {"_proto", "_records"} == modules

    def test_what_cython_imports_lies_below_too(self):
        # import-linter reads .py files alone
        contracts = PROJECT["tool"]["importlinter"]["contracts"]
        upwards = []
        for contract in (each for each in contracts if each["type"] == "layers"):
            prefix = f"{contract['containers'][0]}." if "containers" in contract else ""
            layers = {
                prefix + room: layer
                for layer, rooms in enumerate(contract["layers"])
                for room in re.findall(r"[\w.]+", rooms)
            }
            for path in (*ROOT.glob("darner/**/*.pxd"), *ROOT.glob("darner/**/*.pyx")):
                importer = _room(f"darner.{_module(path, ROOT / 'darner', path.suffix)}", layers)
                for name in re.findall(r"^from ([\w.]+) c?import", path.read_text(), re.MULTILINE):
                    imported = _room(name, layers)
                    if importer and imported not in (None, importer):
                        upwards += [(path.name, name)] * (layers[imported] < layers[importer])
        assert upwards == []

    def test_c_is_not_kept(self):
        assert "/darner/**/*.c\n" in (ROOT / ".gitignore").read_text()
        assert "global-exclude *.c *.so" in (ROOT / "MANIFEST.in").read_text()


# A fork for each module: what all of them need from elsewhere is loaded once.
IMPORTS = """
import importlib, os, sys
import asyncio, click, dramatiq, msgspec, structlog, taskiq, tomlkit, uvloop

for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        importlib.import_module(name)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print("failed", name)
"""


class TestModules:
    @pytest.mark.long
    def test_can_each_be_imported_first(self):
        package = ROOT / "darner"
        files = [*package.rglob("*.py"), *package.rglob("*.pyx")]
        paths = {path.relative_to(ROOT).with_suffix("") for path in files}
        names = {".".join(path.parts).removesuffix(".__init__") for path in paths}
        done = subprocess.run(
            [sys.executable, "-c", IMPORTS, *sorted(names)], capture_output=True, text=True, check=False
        )
        assert (done.stdout, done.stderr) == ("", "")


class TestImage:
    def test_it_is_not_run_by_root_and_keeps_its_data(self):
        last = DOCKERFILE.rpartition("\nFROM ")[2]
        assert re.search(r"^USER [1-9]\d+$", last, re.MULTILINE)
        assert "VOLUME /var/lib/darner" in last
        assert "gcc" not in last

    @pytest.fixture
    def health(self, server):
        """A function that runs the health check against this server and returns the exit code."""
        command = json.loads(re.search(r"HEALTHCHECK [^[]*CMD (\[.+\])$", DOCKERFILE, re.MULTILINE)[1])
        script = command[-1].replace("22133", str(server.port))
        return lambda: subprocess.run([sys.executable, "-c", script], timeout=20, check=False).returncode

    def test_health_is_a_server_that_answers(self, server, health):
        assert health() == 0
        server.kill()
        assert health() != 0


RELIABILITY = (ROOT / "docs" / "reliability.md").read_text()
TESTS = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}


class TestReliability:
    """The tests that docs/reliability.md names."""

    def names(self, pattern):
        found = set(re.findall(rf"`({pattern})`", RELIABILITY))
        assert found
        return found

    def test_are_there(self):
        assert self.names(r"tests/[\w/]+\.py") <= TESTS.keys()
        definitions = re.findall(r"^ *(?:class|def) (\w+)", "\n".join(TESTS.values()), re.MULTILINE)
        assert self.names(r"Test\w+|test_\w+") <= set(definitions)

    def test_are_in_the_files_that_it_says(self):
        said = re.findall(r"`(Test\w+|test_\w+)` in `(tests/[\w/]+\.py)`", RELIABILITY)
        assert said
        assert [name for name, file in said if not re.search(rf"(class|def) {name}\b", TESTS[file])] == []

    def test_stand_behind_each_promise(self):
        tables = [text for text in RELIABILITY.split("\n\n") if text.startswith("| what holds")]
        promises = [row for table in tables for row in table.splitlines()[2:]]
        assert len(promises) > 20
        assert [row for row in promises if "`" not in row.removesuffix(" |").rpartition(" | ")[2]] == []
