"""The docs site: `make docs` builds it with Sphinx."""

from collections.abc import Iterable
from pathlib import Path

import click
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from darner._version import __version__
from darner.cli.main import COMMANDS, SETTINGS, main

project = "darner"
release = version = __version__
copyright = "the authors of darner"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
# a block without a language is a session or an output, no Python
highlight_language = "none"
html_title = f"darner {__version__}"
# each heading is a target, as on GitHub
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
default_role = "code"


class CommandHelp(SphinxDirective):
    """Each command of the command line with what its `--help` says."""

    def run(self) -> list[nodes.Node]:
        """Return a section for each group of commands, with one for each command in it."""
        groups = {"The server": [""]} | {title: [*names] for title, names in COMMANDS.items()}
        return [self._section(title, map(self._command, names)) for title, names in groups.items()]

    def _command(self, name: str) -> nodes.section:
        words = ["darner", name] if name else ["darner"]
        parent = click.Context(main, info_name="darner") if name else None
        command = main.get_command(parent, name) if parent else main
        settings = SETTINGS | {"max_content_width": 88, "terminal_width": 88}
        context = click.Context(command, parent, words[-1], **settings)
        text = command.get_help(context)
        return self._section(" ".join(words), [nodes.literal_block(text, text, language="text")])

    def _section(self, title: str, parts: Iterable[nodes.Node]) -> nodes.section:
        section = nodes.section("", nodes.title(title, title), *parts, ids=[nodes.make_id(title)])
        self.state.document.note_implicit_target(section, section)
        return section


def lead_outside(app: Sphinx, doctree: nodes.document) -> None:
    """Make a link to a page beside docs/, such as CONTRIBUTING.md, one to a file of the site."""
    for link in list(doctree.findall(addnodes.pending_xref)):
        path = Path(f"{link.get('reftarget', '')}.md")
        if link.get("refdomain") == "doc" and path.is_absolute():
            target = f"/../{path.relative_to(app.srcdir.parent).as_posix()}"
            link.replace_self(
                addnodes.download_reference("", "", *link.children, reftarget=target, refdoc=link["refdoc"])
            )


def setup(app: Sphinx) -> None:
    """Tell Sphinx of what is defined here."""
    # before Sphinx collects the files that are linked
    app.connect("doctree-read", lead_outside, priority=400)
    app.add_directive("command-help", CommandHelp)
