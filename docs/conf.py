"""The docs site: `make docs` builds it with Sphinx."""

from darner._version import __version__

project = "darner"
release = version = __version__
copyright = "the authors of darner"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"darner {__version__}"
# each heading is a target, as on GitHub
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
default_role = "code"
# a link to a page beside docs/ is none on the site; tests/test_links.py checks that each leads somewhere
suppress_warnings = ["myst.xref_missing"]
