"""structlog without rich, which it loads where that is installed: 3.5 MB and 0.1 s, to color tracebacks.

A server logs a traceback as one line, and has no use for it.
"""

import importlib
import sys
from typing import Any


def load() -> None:
    """Import structlog; to be called before anything else does. rich can still be imported afterwards."""
    modules: dict[str, Any] = sys.modules
    modules["rich"] = None
    importlib.import_module("structlog")
    del modules["rich"]
