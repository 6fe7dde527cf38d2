"""What all pages share: the servers that they show, and the templates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from aiohttp import web

from darner.client.errors import BadRequestError
from darner.printable import printable
from darner.tools.overview import duration
from darner.web import figures
from darner.web.links import link, queue_id, queue_named
from darner.web.watch import Watch

HERE = Path(__file__).parent
# How much of what is wrong is shown.
MOST_TROUBLES = 8


class Site:
    """Servers by their names, and templates."""

    def __init__(self, watches: Mapping[str, Watch]) -> None:
        self.watches = watches
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE / "templates"),
            autoescape=True,
            # an upgrade may put other ones under a page that runs
            auto_reload=False,
            trim_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        self._templates.globals.update(
            link=link, id=queue_id, seen=printable, duration=duration, count=figures.count,
            plural=figures.plural, most_troubles=MOST_TROUBLES,
        )  # fmt: skip

    def asked(self, request: web.Request) -> tuple[Watch, str]:
        """Return the server and the queue that are asked for; HTTPNotFound if there can be no such."""
        try:
            return self.watches[request.query["server"]], queue_named(request.query["queue"])
        except (KeyError, BadRequestError):
            raise web.HTTPNotFound(text="There is no such server, or no queue can be called so.\n") from None

    def render(self, template: str, **shown: Any) -> web.Response:
        """Return a page."""
        text = self._templates.get_template(template).render(shown)
        # a name may have bytes that are no UTF-8: they were made printable, but for what a stranger asked
        return web.Response(body=text.encode(errors="replace"), content_type="text/html", charset="utf-8")


def number_in(request: web.Request, name: str, least: int = 1) -> int:
    """Return a number of the address, `least` if it has none; HTTPBadRequest if it is none."""
    text = request.query.get(name, str(least))
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise web.HTTPBadRequest(text=f"{name} is a number.\n")
    return max(int(text), least)
