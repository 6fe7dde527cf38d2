"""docs/design.md: its table names each module, and the functions of its walks exist and lead downwards."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DARNER = ROOT / "darner"
DESIGN = (ROOT / "docs" / "design.md").read_text()
PART = DESIGN.split("\n## Five walks\n")[1].split("\n## ")[0]
WALKS = re.findall(r"^```\n(.+?)^```", PART, re.DOTALL | re.MULTILINE)
STEPS = [re.match(r"( *)(\S+): (\S+)", line).groups() for walk in WALKS for line in walk.splitlines()]
# from the lowest to the highest; what stands in no folder is at the bottom, but for what starts all
FLOORS = ["config", "environment", "journal", "queues", "wire", "access", "server", "cli"]


def functions(path: Path) -> set[str]:
    """The functions and methods of a module, as `function` and `Class.method`."""
    found = set()
    owner = ""
    for line in path.read_text().splitlines():
        if kind := re.match(r"(?:cdef )?class (\w+)", line):
            owner = f"{kind[1]}."
        elif method := re.match(r"    (?:async )?(?:def|cpdef(?: \w+)*) (\w+)\(", line):
            found.add(owner + method[1])
        elif function := re.match(r"(?:async )?(?:def|cpdef(?: \w+)*) (\w+)\(", line):
            owner = ""
            found.add(function[1])
    return found


def floor(file: str) -> int:
    """How high a module stands."""
    if file == "__main__.py":
        return len(FLOORS)
    return FLOORS.index(file.partition("/")[0]) if "/" in file else -1


def test_functions_of_the_walks_exist():
    assert len(WALKS) > 5
    assert [
        f"{file}: {name}"
        for _, file, name in STEPS
        if not (DARNER / file).exists() or name not in functions(DARNER / file)
    ] == []


def test_walks_lead_downwards():
    callers: list[tuple[int, str]] = []
    for indent, file, name in STEPS:
        while callers and callers[-1][0] >= len(indent):
            callers.pop()
        if callers:
            assert floor(file) <= floor(callers[-1][1]), f"{callers[-1][1]} is below {file}: {name}"
        callers.append((len(indent), file))


def test_table_names_each_module_once():
    rows = [row.split(" | ") for row in DESIGN.splitlines() if re.match(r"\| \d+ \| `", row)]
    assert len(rows) > len(FLOORS)
    named = [
        (folder.strip("`").removeprefix("darner/"), room)
        for _, folder, rooms in rows
        for room in re.findall(r"`(\w+)`(?! says)", re.sub(r"\([^)]*\)", "", rooms))
    ]
    files = [*DARNER.rglob("*.py"), *DARNER.rglob("*.pyx")]
    there = [
        (f"{path.parent.relative_to(DARNER)}/".removeprefix("./"), path.stem)
        for path in files
        if path.name != "__init__.py"
    ]
    assert sorted(named) == sorted(there)
