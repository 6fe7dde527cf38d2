"""What an import of the client loads."""

import subprocess
import sys

LOADED = """
import sys
before = set(sys.modules)
import darner.client
for name in sorted(set(sys.modules) - before):
    print(name, getattr(sys.modules[name], "__file__", None) or "")
"""
OF_DARNER = ("darner", "darner._version", "darner.errors", "darner.client")


def test_loads_nothing_of_the_server_nothing_compiled_and_only_the_standard_library():
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    loaded = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())
    assert "darner.client.client" in loaded
    for name, file in loaded.items():
        if name.partition(".")[0] == "darner":
            assert name.startswith("darner.client.") or name in OF_DARNER
            assert file.endswith(".py")
        else:
            assert name.partition(".")[0] in sys.stdlib_module_names
