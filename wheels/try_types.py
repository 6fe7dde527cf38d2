"""Read by mypy, not run: whether the type stubs of an installed darner are seen."""

from typing import assert_type

from darner import __version__
from darner._proto import Parser, Request
from darner._records import encode_item
from darner.config.settings import Settings

assert_type(__version__, str)
assert_type(list(Parser()), list[Request])
assert_type(next(Parser()).timeout_ms, int)
assert_type(Settings().port, int)
encode_item("no item")  # type: ignore[arg-type]
