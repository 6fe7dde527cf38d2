"""The workflows of GitHub: they are valid, and a release hands out only what was built and attested there."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

WORKFLOWS = sorted((Path(__file__).parents[1] / ".github" / "workflows").glob("*.yml"))


def tool(name: str) -> str:
    """Return the path of a tool beside this Python; skip the test without it."""
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    return found or pytest.skip(f"there is no {name} here")


def jobs(name: str) -> dict:
    """Return the jobs of a workflow."""
    (file,) = (file for file in WORKFLOWS if file.name == name)
    return yaml.safe_load(file.read_text())["jobs"]


def problems_of(*words: str) -> str:
    """Return what a tool says if it finds something, else ""."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr if done.returncode else ""


def schema_problems(file: Path) -> str:
    return problems_of(tool("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", str(file))


def security_problems(file: Path) -> str:
    return problems_of(
        tool("zizmor"), "--offline", "--no-progress", "--quiet", "--min-severity", "medium", str(file)
    )


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
class TestEach:
    def test_is_what_github_takes_for_a_workflow(self, file):
        assert schema_problems(file) == ""

    def test_gives_strangers_nothing(self, file):
        assert security_problems(file) == ""

    def test_runs_actions_at_a_commit_whose_version_it_names(self, file):
        used = re.findall(r"uses: +([^./].*)", file.read_text())
        assert used
        assert [each for each in used if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", each)] == []


class TestTheChecks:
    def test_find_a_word_that_github_does_not_know(self, tmp_path):
        workflow = tmp_path / "wrong.yml"
        workflow.write_text("on: push\njobs:\n  one:\n    runs-on: ubuntu-latest\n    step: []\n")
        assert "step" in schema_problems(workflow)

    def test_find_what_a_stranger_can_write_into_a_shell(self, tmp_path):
        workflow = tmp_path / ".github" / "workflows" / "wrong.yml"
        workflow.parent.mkdir(parents=True)
        workflow.write_text(
            "on: pull_request_target\njobs:\n  one:\n    runs-on: ubuntu-latest\n    steps:\n"
            "      - run: echo ${{ github.event.pull_request.title }}\n"
        )
        assert "template-injection" in security_problems(workflow)


class TestTheRelease:
    @pytest.fixture
    def release(self):
        return jobs("release.yml")

    def after(self, release, name: str) -> set[str]:
        """Return the jobs that must have passed before one begins."""
        needs = release[name].get("needs", [])
        first = {needs} if isinstance(needs, str) else set(needs)
        return first.union(*(self.after(release, each) for each in first))

    def test_is_handed_out_only_once_everything_is_built_and_attested(self, release):
        assert self.after(release, "attest") == {"version", "wheels", "deb"}
        assert self.after(release, "pypi") >= {"attest"}
        assert self.after(release, "github") >= {"attest"}

    def test_needs_no_secret_and_each_job_has_the_rights_it_needs_alone(self, release):
        rights = {name: job["permissions"] for name, job in release.items()}
        assert rights == {
            "version": {"contents": "read"},
            "wheels": {"contents": "read"},
            "deb": {"contents": "read"},
            "attest": {"attestations": "write", "id-token": "write"},
            "pypi": {"id-token": "write"},
            "github": {"contents": "write"},
        }
        assert "secrets." not in str(release)

    def test_attests_all_artifacts_and_publishes_no_debian_package_to_pypi(self, release):
        steps = {name: {step["uses"].partition("@")[0]: step for step in release[name]["steps"]}
                 for name in ("attest", "pypi")}  # fmt: skip
        assert steps["attest"]["actions/attest"]["with"] == {"subject-path": "dist/*"}
        assert "pattern" not in steps["attest"]["actions/download-artifact"]["with"]
        made = [step["with"]["name"] for file in ("wheels.yml", "release.yml") for job in jobs(file).values()
                for step in job.get("steps", ()) if "upload-artifact" in step.get("uses", "")]  # fmt: skip
        assert {name.partition("-")[0] for name in made} == {"sdist", "wheels", "deb"}
        assert steps["pypi"]["actions/download-artifact"]["with"]["pattern"] == "{sdist,wheels-*}"
