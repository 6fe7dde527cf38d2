"""One of the harnesses of tests/test_corpus.py under libFuzzer; `fuzz/run` gives it what it needs."""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import test_corpus

if __name__ == "__main__":
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, getattr(test_corpus, name))
    atheris.Fuzz()
