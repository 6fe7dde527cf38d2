"""The Debian package: installed, used, upgraded, removed and purged, as dpkg does it on this Debian.

That happens in a directory with copies of the files of Debian's essential packages, and of those that the
package depends on. So nothing of the machine changes, and a dependency that is not declared is missing.
"""

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Wire

from darner._version import __version__
from load.servers import free_port

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
CONFIG = "etc/darner/darner.toml"
DATA = "var/lib/darner"
UNITS = "usr/lib/systemd/system"
# Writes down what it was asked for; each unit is enabled, and none can be started.
SYSTEMCTL = """#!/bin/sh
echo "$@" >>/tmp/systemctl
case "$*" in *is-enabled*) echo enabled ;; *start*) exit 1 ;; esac
"""


def output(*words: object, **options) -> str:
    """Run a command and return its output; AssertionError with its errors if it fails."""
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, timeout=100, check=False, **options
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def fresh_wheel() -> Path:
    """Return the wheel for Debian's CPython that `make wheel` has made; skip without one of these sources."""
    tools = ("dpkg", "dpkg-shlibdeps", "unshare")
    if os.geteuid() != 0 or not all(map(shutil.which, tools)):
        pytest.skip(f"needs root, and {', '.join(tools)}")
    tag = output("/usr/bin/python3", "-c", "import sys; print('cp%d%d' % sys.version_info[:2])").strip()
    wheels = list((ROOT / "wheels" / "dist").glob(f"darner-*-{tag}-{tag}-*.whl"))
    sources = [file for file in (ROOT / "darner").rglob("*") if file.suffix in {".py", ".pyx", ".pxd"}]
    newest = max(file.stat().st_mtime for file in [*sources, ROOT / "setup.py"])
    if not wheels or max(wheel.stat().st_mtime for wheel in wheels) < newest:
        pytest.skip(f"there is no wheel of these sources for Debian's {tag}: make wheel")
    return max(wheels, key=lambda wheel: wheel.stat().st_mtime)


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """The package, as `make deb` makes it: once for all workers of pytest."""
    wheel = fresh_wheel()
    base = tmp_path_factory.getbasetemp()
    dist = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "deb"
    dist.mkdir(exist_ok=True)
    with (dist / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = dist / "made"
        if not made.exists():
            environment = os.environ | {"DEB_DIST": str(dist)}
            made.write_text(output(ROOT / "deb" / "build", wheel, env=environment).strip())
        return Path(made.read_text())


@pytest.fixture(scope="module")
def later(package, tmp_path_factory) -> Path:
    """The package in a higher version, with other comments in its configuration."""
    tree = tmp_path_factory.mktemp("later")
    output("dpkg-deb", "--raw-extract", package, tree)
    control = tree / "DEBIAN" / "control"
    control.write_text(re.sub(r"(?m)^Version: (.*)$", r"Version: \1+later", control.read_text()))
    (tree / "usr/lib/darner/later").touch()
    output("dpkg-deb", "--root-owner-group", "--build", "-Znone", tree, tree.with_suffix(".deb"))
    return tree.with_suffix(".deb")


def installed_names(*depends: str) -> set[str]:
    """Return the names of the essential packages and of these, with all that they need, as dpkg has them."""
    form = "${Package}\t${Essential}\t${Pre-Depends}, ${Depends}\t${Provides}\n"
    needs, providers, wanted = {}, {}, list(depends)
    for line in output("dpkg-query", "--show", "--showformat", form).splitlines():
        name, essential, needed, provided = line.split("\t")
        needs[name] = [re.findall(r"[a-z0-9][a-z0-9+.-]+", any_of) for any_of in names_in(needed)]
        providers.setdefault(name, name)
        for (word,) in map(re.compile(r"[a-z0-9][a-z0-9+.-]+").findall, names_in(provided)):
            providers.setdefault(word, name)
        if essential == "yes":
            wanted.append(name)
    found: set[str] = set()
    while wanted:
        name = providers[wanted.pop()]
        if name not in found:
            found.add(name)
            wanted.extend(next(word for word in any_of if word in providers) for any_of in needs[name])
    return found


def names_in(relation: str) -> list[str]:
    """Return what a field like Depends asks for, without versions and architectures."""
    bare = re.sub(r"\([^)]*\)|:[a-z0-9]+", "", relation)
    return [part for part in bare.split(",") if part.strip()]


class Machine:
    """A directory as the root of a Debian, in a mount namespace of its own with /proc and /dev."""

    def __init__(self, root: Path, names: set[str]) -> None:
        self.root = root
        (root / "var/lib/dpkg/info").mkdir(parents=True)
        self._copy_files(names)
        self._copy_dpkg(names)
        for directory, mode in (("proc", 0o555), ("dev", 0o755), ("tmp", 0o1777), ("root", 0o700)):
            (root / directory).mkdir(exist_ok=True)
            (root / directory).chmod(mode)
        for file in ("passwd", "group"):
            shutil.copy(Path("/usr/share/base-passwd") / f"{file}.master", root / "etc" / file)
        for file in ("shadow", "gshadow"):
            (root / "etc" / file).touch(0o640)
        self._keeper = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c",
             'mount --bind /proc "$0/proc" && mount --bind /dev "$0/dev" && echo up && exec sleep infinity',
             str(root)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._keeper.stdout.readline() == "up\n"

    def _copy_files(self, names: set[str]) -> None:
        # /bin is a link to usr/bin, and so on
        for link in filter(Path.is_symlink, Path("/").iterdir()):
            (self.root / link.readlink()).mkdir(parents=True, exist_ok=True)
        listed = output("dpkg-query", "--listfiles", *sorted(names)).splitlines()
        files = sorted({line for line in listed if line.startswith("/") and os.path.lexists(line)})
        kept = [file for file in files if not file.startswith(("/usr/share/doc/", "/usr/share/locale/"))]
        # ld.so's cache and what maintainer scripts have made of alternatives
        made = ["/etc/ld.so.cache", *map(str, Path("/etc/alternatives").iterdir())]
        with subprocess.Popen(
            ["tar", "--create", "--no-recursion", "--directory=/", "--null", "--files-from=-"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as packing, subprocess.Popen(
            ["tar", "--extract", "--directory", self.root], stdin=packing.stdout
        ) as unpacking:  # fmt: skip
            packing.stdout.close()
            packing.stdin.write("\0".join(file.lstrip("/") for file in [*kept, *made]).encode())
            packing.stdin.close()
        assert (packing.returncode, unpacking.returncode) == (0, 0)

    def _copy_dpkg(self, names: set[str]) -> None:
        database, copy = Path("/var/lib/dpkg"), self.root / "var/lib/dpkg"
        paragraphs = (database / "status").read_text().split("\n\n")
        kept = [each for each in paragraphs if each.partition("\n")[0].removeprefix("Package: ") in names]
        (copy / "status").write_text("\n\n".join(kept) + "\n")
        for file in (database / "info").iterdir():
            if file.stem.partition(":")[0] in names:
                shutil.copy(file, copy / "info")

    def close(self) -> None:
        self._keeper.kill()
        self._keeper.wait()
        # only empty ones: were anything still mounted there, it would be the machine's own
        (self.root / "proc").rmdir()
        (self.root / "dev").rmdir()
        shutil.rmtree(self.root)

    def words(self, *words: object) -> list[str]:
        """Return a command that runs another one in here."""
        return ["nsenter", "--target", str(self._keeper.pid), "--mount", "chroot", str(self.root),
                "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONDONTWRITEBYTECODE=1",
                "DEBIAN_FRONTEND=noninteractive", *map(str, words)]  # fmt: skip

    def run(self, *words: object) -> str:
        """Run a command in here and return what it writes; AssertionError if it fails."""
        return output(*self.words(*words), stdin=subprocess.DEVNULL)

    def dpkg(self, *words: object) -> str:
        return self.run("dpkg", *words)

    def install(self, package: Path) -> str:
        shutil.copy(package, self.root / "tmp")
        return self.dpkg("--install", f"/tmp/{package.name}")

    def files(self) -> set[str]:
        """Return the paths of all files that a package might have left."""
        return {
            str(path.relative_to(self.root))
            for part in ("etc", "usr", "var", "run")
            for path in (self.root / part).rglob("*")
        }

    @contextlib.contextmanager
    def serving(self) -> Iterator[Wire]:
        """Run the console script as the service does, on a free port, and yield a connection to it."""
        port = free_port()
        unit = (self.root / UNITS / "darner.service").read_text()
        command = re.search(r"(?m)^ExecStart=(.*)$", unit)[1].split()
        user = re.search(r"(?m)^User=(.*)$", unit)[1]
        server = subprocess.Popen(
            self.words("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--no-new-privs",
                       *command, "--port", port),
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        lines = iter(server.stderr.readline, "")
        try:
            said = []
            for line in lines:
                said.append(line)
                if "event=listening" in line:
                    break
            assert "event=listening" in "".join(said[-1:]), said
            yield Wire(port)
        finally:
            server.terminate()
            rest = server.communicate(timeout=60)[1]
            assert server.returncode == 0, rest


@pytest.fixture
def machine(tmp_path, package):
    depends = output("dpkg-deb", "--field", package, "Depends")
    names = [re.findall(r"[a-z0-9][a-z0-9+.-]+", each)[0] for each in names_in(depends)]
    made = Machine(tmp_path / "root", installed_names(*names))
    yield made
    made.close()


def test_a_package_is_installed_used_upgraded_removed_and_purged(machine, package, later):
    before = machine.files()
    machine.install(package)
    assert machine.run("stat", "--format", "%U:%G %a", f"/{DATA}") == "darner:darner 700\n"
    assert machine.run("darner", "--version") == f"{__version__}\n"
    assert "is fine: listens on 127.0.0.1 port 22133, data in /var/lib/darner" in machine.run(
        "darner", "--config", f"/{CONFIG}", "--check-config"
    )
    with machine.serving() as wire:
        assert wire.set(b"work", b"hello") == b"STORED\r\n"
        assert wire.get(b"work") == b"hello"
        assert wire.set(b"work", b"kept") == b"STORED\r\n"

    config = machine.root / CONFIG
    config.write_text(config.read_text() + "\n# changed by an operator\n")
    machine.install(later)
    assert (machine.root / "usr/lib/darner/later").exists()
    assert config.read_text().endswith("# changed by an operator\n")
    with machine.serving() as wire:
        assert wire.get(b"work") == b"kept"
        assert wire.set(b"work", b"still there") == b"STORED\r\n"

    machine.dpkg("--remove", "darner")
    assert not (machine.root / "usr/lib/darner").exists()
    assert not (machine.root / UNITS / "darner.service").exists()
    assert config.exists()
    assert (machine.root / DATA / "work").is_dir()

    machine.install(package)
    with machine.serving() as wire:
        assert wire.get(b"work") == b"still there"

    machine.dpkg("--purge", "darner")
    # what dpkg and adduser write, and the user, whose number another one must not get
    own = re.compile(
        r"var/(lib/dpkg|log|cache)/|etc/(passwd|group|shadow|gshadow|subuid|subgid)-?$|etc/.pwd.lock$|run/adduser$"
    )
    left = {path for path in machine.files() - before if not own.match(path)}
    assert left == set()
    assert "darner" in (machine.root / "etc/passwd").read_text()


def test_the_service_is_enabled_once_and_an_upgrade_leaves_it_as_the_operator_has_it(machine, package, later):
    enabled = machine.root / "etc/systemd/system/multi-user.target.wants/darner.service"
    machine.install(package)
    assert enabled.is_symlink()
    enabled.unlink()
    machine.install(later)
    assert not enabled.is_symlink()


def test_under_systemd_the_server_is_started_restarted_and_stopped_and_may_fail_to(machine, package, later):
    (machine.root / "run/systemd/system").mkdir(parents=True)
    systemctl = machine.root / "usr/bin/systemctl"
    systemctl.write_text(SYSTEMCTL)
    systemctl.chmod(0o755)
    said = machine.root / "tmp/systemctl"

    def asked_for(action: str) -> bool:
        calls = [line.split() for line in said.read_text().splitlines()]
        said.unlink()
        assert ["daemon-reload"] in calls
        return any(action in call and "darner.service" in call for call in calls)

    machine.install(package)
    assert asked_for("start")
    machine.install(later)
    assert asked_for("restart")
    machine.dpkg("--remove", "darner")
    assert asked_for("stop")


def test_an_operators_own_data_directory_is_left_as_it_is(machine, package):
    data = machine.root / DATA
    data.mkdir(mode=0o750)
    machine.install(package)
    assert data.stat().st_mode & 0o777 == 0o750
    assert machine.run("stat", "--format", "%U", f"/{DATA}") == "root\n"


def test_nothing_of_the_build_machine_is_in_it(package, tmp_path):
    output("dpkg-deb", "--extract", package, tmp_path)
    strangers = [str(ROOT).encode(), b"/tmp/deb.", sys.prefix.encode(), b".pyenv/"]
    found = [
        (path, stranger)
        for path in tmp_path.rglob("*")
        if path.is_file() and not path.is_symlink()
        for stranger in strangers
        if stranger in path.read_bytes()
    ]
    assert found == []


@pytest.mark.skipif(shutil.which("lintian") is None, reason="there is no lintian here")
def test_lintian_finds_nothing(package):
    assert output("lintian", "--allow-root", "--fail-on=warning,error", package) == ""


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
def test_its_units_are_those_of_the_tree_as_far_as_systemd_hardens_them(package, tmp_path):
    output("dpkg-deb", "--extract", package, tmp_path)
    service = tmp_path / UNITS / "darner.service"
    service.write_text(service.read_text().replace("/usr/bin/darner", "/bin/true"))
    output("systemd-analyze", "verify", service)
    output("systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", service)
    changed = set(service.read_text().splitlines()) ^ set(
        (ROOT / "adm/darner.service").read_text().splitlines()
    )
    assert {line.partition("=")[0] for line in changed if not line.startswith("#")} == {
        "DynamicUser", "ExecStart", "Group", "User",
    }  # fmt: skip
