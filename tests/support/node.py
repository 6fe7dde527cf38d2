"""Node.js and the packages that `make .venv/.tools` installs for the tests."""

import shutil
import sys
from pathlib import Path

NODE = shutil.which("node")
NODE_MODULES = Path(sys.prefix) / "node" / "node_modules"


def why_node_cannot_run() -> str:
    """Return why no test of Node's memcached can run here; "" if it can."""
    if NODE is None:
        return "there is no node"
    if not (NODE_MODULES / "memcached").is_dir():
        return "Node's memcached is not installed: npm was missing or failed in `make .venv/.tools`"
    return ""
