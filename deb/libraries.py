"""Prints name, version and license of what PYTHONPATH has beside darner, for the package's copyright file."""

from importlib.metadata import distributions

for each in sorted(distributions(), key=lambda found: found.name.lower()):
    if each.name == "darner":
        continue
    about = each.metadata
    words = about.get("License-Expression") or about.get("License") or ""
    if not words or "\n" in words:
        classifiers = about.get_all("Classifier") or []
        words = ", ".join(line.rpartition(" :: ")[2] for line in classifiers if line.startswith("License ::"))
    print(f"{each.name} {each.version}: {words or 'see there'}")
