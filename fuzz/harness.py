#!/usr/bin/env python
"""The harness $HARNESS of tests/test_corpus.py under libFuzzer; `fuzz/run` gives it what it needs.

libFuzzer starts it again by itself when it merges: hence no argument of its own, and the line above.
"""

import os
import sys
from pathlib import Path

import atheris

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "support")]

import test_corpus

if __name__ == "__main__":
    atheris.Setup(sys.argv, getattr(test_corpus, os.environ["HARNESS"]))
    atheris.Fuzz()
