"""The code blocks of the pages, and what is to be done with each: CONTRIBUTING.md has the marks."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# what is done with a block of each language, if no mark says otherwise
KINDS = {
    "sh": "shell", "bash": "shell", "console": "console", "python": "python", "toml": "toml", "json": "json",
    "ini": "unit", "yaml": "yaml", "promql": "promql",
}  # fmt: skip
# what Sphinx makes of these, `make docs` proves
DIRECTIVE = re.compile(r"\{[\w-]+\}.*")
MARK = re.compile(
    r"(?P<word>(?:blocks )?(?:not run|run by|bench)"
    r"|run here|setup|file|background|output|terminal|figures differ)"
    r"(?::\s*(?P<text>.*))?",
    re.DOTALL,
)
# the marks that say what is done with a block, in place of its language
DECIDE = ("not run", "run by", "setup", "file", "background", "output", "bench")
SESSION = re.compile(r"(?:[CS]\d?:(?: .*)?\n)+")
FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>```+)(?P<language>[^`\n]*)\n(?P<text>.*?)^ *(?P=fence) *$"
    r"|^ *<!--\s*(?P<comment>.*?)\s*-->",
    re.DOTALL | re.MULTILINE,
)


@dataclass
class Block:
    """A code block, or a command that a comment has for the test alone."""

    page: Path
    line: int
    language: str
    text: str
    # the words of the marks before it, each with what is behind its colon
    marks: dict[str, str]

    @property
    def kind(self) -> str:
        """What is done with it: `not run`, `run by`, or how it is run; "" if nobody knows."""
        if found := [mark for mark in DECIDE if mark in self.marks]:
            return found[0]
        if DIRECTIVE.fullmatch(self.language):
            return "directive"
        if not self.language and SESSION.fullmatch(self.text):
            return "session"
        return KINDS.get(self.language, "")

    @property
    def where(self) -> str:
        """The page and the line, as editors know them."""
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page, in their order; ValueError for a mark that is none."""
    content = page.read_text()
    marks: dict[str, str] = {}
    of_all: dict[str, str] = {}
    end = 0
    for found in FENCE.finditer(content):
        line = content.count("\n", 0, found.start()) + 1
        if marks and content[end : found.start()].strip():
            raise ValueError(f"{page.name}:{line}: a mark above has no block: {marks}")
        end = found.end()
        if found["fence"]:
            text = re.sub(f"^{found['indent']}", "", found["text"], flags=re.MULTILINE)
            if not {"run here", *DECIDE} & marks.keys():
                marks = of_all | marks
            yield Block(page, line, found["language"].strip(), text, marks)
            marks = {}
            continue
        mark = MARK.fullmatch(found["comment"])
        if mark is None:
            raise ValueError(f"{page.name}:{line}: no such mark: {found['comment']}")
        word, text = mark["word"], mark["text"] or ""
        if word == "setup":
            yield Block(page, line, "sh", f"{text}\n", {"setup": ""})
        elif word.startswith("blocks "):
            of_all[word.removeprefix("blocks ")] = text
        else:
            marks[word] = text
    if marks:
        raise ValueError(f"{page.name}: the last mark has no block: {marks}")
