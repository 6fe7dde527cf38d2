"""The code blocks of docs/ and of the README: each is run as it stands there, or says why not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from blocks import FENCE, PAGES, ROOT, blocks
from page_runner import ALONE

from darner.cli.main import main

RUNNER = ROOT / "tests" / "support" / "page_runner.py"
NAMES = {str(page.relative_to(ROOT)): page for page in PAGES}
# what is not run here in any case
ELSEWHERE = ("not run", "run by", "directive")
RUN = {
    name: page for name, page in NAMES.items() if any(block.kind not in ELSEWHERE for block in blocks(page))
}


@pytest.fixture(scope="session")
def alone():
    """Skip where nothing may be run in namespaces of its own."""
    tried = subprocess.run([*ALONE, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no namespaces to be had here: {tried.stderr.strip()}")


def run_page(page: Path, directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ALONE, sys.executable, RUNNER, page], cwd=directory, capture_output=True, text=True, timeout=280,
        env=os.environ | {"PYTHONPATH": str(ROOT / "bench")} | environment, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("page", NAMES.values(), ids=NAMES)
def test_each_block_is_run_or_says_why_not(page):
    assert [block.where for block in blocks(page) if not block.kind] == []
    for block in blocks(page):
        if block.kind == "not run":
            assert len(block.marks["not run"].split()) > 2, f"{block.where}: why is it not run?"
        if block.kind == "run by":
            for test in re.split(r",\s*", block.marks["run by"]):
                assert page.name in (ROOT / test).read_text(), f"{block.where}: {test} does not know the page"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", RUN.values(), ids=RUN)
def test_the_blocks_of_a_page_do_what_it_says(page, alone, tmp_path):
    done = run_page(page, tmp_path)
    assert done.returncode == 0, done.stderr


def commands(page: Path) -> list[str]:
    """Return the commands of darner that stand in the text of a page."""
    return re.findall(r"`(darner [a-z][^`]*)`", FENCE.sub("", page.read_text()))


@pytest.mark.parametrize("page", NAMES.values(), ids=NAMES)
def test_each_command_in_the_text_is_one(page):
    for text in commands(page):
        words = text.split()
        command = main.get_command(None, words[1])
        assert command is not None, f"{page.name}: {text}"
        known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)}
        assert {word for word in words if re.fullmatch(r"-[a-z]|--[a-z-]+", word)} <= known | {"--help"}, text


# for each kind of block a page, what is right in it, and what would be wrong
PIECES = {
    "console": (
        "```console\n$ echo a b; exit_status() { return 3; }\na b\n$ exit_status; echo $?\n3\n```",
        "\n3\n",
        "\n0\n",
    ),
    "session": (
        (
            "<!-- setup: start_server -->\n\n```\nC: set work 0 0 5\nC: hello\nS: STORED\nC: get work\n"
            "S: VALUE …\nS: hello\nS: END\nC: quit\nS: (closes)\n```"
        ),
        "S: hello\n",
        "S: hallo\n",
    ),
    "python": ("```python\nprint(6 * 7)  # 42: the answer\n```", "# 42", "# 43"),
    "background": (
        "<!-- background: counts to 2 -->\n\n```sh\necho counts to 1; echo counts to 2; exit\n```",
        "echo counts to 2; exit",
        "exec false",
    ),
    "output": (
        "```sh\necho counts to 1\n```\n\n<!-- output -->\n\n```\ncounts to …\n```",
        "counts to …\n",
        "counts to 2\n",
    ),
    "shell": (
        "```sh\nexport word=hello\n```\n\n```sh\ntest $word = hello\n```",
        "test $word = hello\n",
        "test $word = hallo\ntrue\n",
    ),
    "toml": ('```toml\n[queues."work"]\nmax_items = 5\n```', "5", "'many'"),
    "file": (
        "<!-- file: jobs.py -->\n\n```python\ndef double(number):\n    return 2 * number\n```",
        "2 * n",
        "2 * * n",
    ),
    "unit": (
        "```ini\n# /etc/systemd/system/a.service\n[Service]\nExecStart=/opt/darner/bin/darner\n```",
        "# /etc/systemd/system/a.service\n",
        "",
    ),
    "json": ('```json\n{"a": 1}\n```', "1}", "1"),
}


class TestRunner:
    def page(self, directory: Path, text: str) -> Path:
        page = directory / "page.md"
        page.write_text(text)
        return page

    def test_runs_a_page_that_is_right(self, alone, tmp_path):
        text = "\n\n".join(piece for piece, _, _ in PIECES.values())
        done = run_page(self.page(tmp_path, text), tmp_path)
        assert (done.returncode, done.stderr) == (0, "")

    @pytest.mark.parametrize("kind", PIECES)
    def test_names_the_block_that_is_not_right(self, kind, alone, tmp_path):
        text, right, wrong = PIECES[kind]
        assert right in text
        done = run_page(self.page(tmp_path, text.replace(right, wrong)), tmp_path, DARNER_PAGE_SECONDS="3")
        assert done.returncode == 1
        assert re.match(rf"page.md:\d+: {kind}: ", done.stderr)

    def test_knows_no_block_without_a_language_and_a_mark(self, tmp_path):
        page = self.page(
            tmp_path, "```\nwhat is this?\n```\n\n<!-- not run: needs a phone -->\n\n```\nthis\n```\n"
        )
        assert [block.kind for block in blocks(page)] == ["", "not run"]

    @pytest.mark.parametrize(
        "text", ["<!-- nut run: x -->\n", "<!-- file: x.py -->\n", "<!-- file: x -->\nA\n```\n```\n"]
    )
    def test_refuses_a_mark_that_is_none_or_has_no_block(self, text, tmp_path):
        with pytest.raises(ValueError, match=r"page\.md"):
            list(blocks(self.page(tmp_path, text)))
