"""The pages: what is shown for an address."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from darner.client.errors import ClientError
from darner.tools.overview import Overview
from darner.tools.waiting_items import Waiting
from darner.web import body, figures, listing, sparkline
from darner.web.acts import said
from darner.web.asking import PREVIEW_BYTES, WHOLE_BYTES
from darner.web.history import POINTS, Histories
from darner.web.site import HERE, Site, number_in
from darner.web.watch import Watch

ITEMS_PER_PAGE = 20
# How much of an item the list of a queue shows.
PREVIEW_CHARACTERS = 300
CHARTS = (
    ("items", ("items",), ("",)),
    ("in and out a second", ("rate_in", "rate_out"), ("i", "o")),
    ("the head waits", ("head_age",), ("",)),
    ("clients that wait", ("waiters",), ("",)),
    ("reserved", ("reserved",), ("",)),
)


class Pages:
    """The pages of some servers."""

    def __init__(self, site: Site, histories: Histories, acts: Sequence[str]) -> None:
        """`acts` are those that the page of a queue offers."""
        self._site = site
        self._histories = histories
        self._acts = acts

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return what is answered at which address."""
        return [
            web.get("/", self.queues),
            web.get("/queue", self.queue),
            web.get("/item", self.item),
            web.static("/static", HERE / "static"),
        ]

    async def queues(self, request: web.Request) -> web.Response:
        """All queues of all servers."""
        overviews = self._look(*self._site.watches.values())
        sample = self._sample()
        if request.query.get("live") == sample:
            return web.Response(status=204)
        by = listing.column_named(request.query.get("sort", ""))
        goes_down = bool(request.query.get("down")) if "sort" in request.query else by.goes_down
        found = listing.listing(
            overviews, self._histories, time.monotonic(),
            part=request.query.get("q", ""), by=by, goes_down=goes_down,
        )  # fmt: skip
        answer = self._site.render(
            "queues.html",
            sample=sample,
            servers=overviews,
            troubles=sorted(each for overview in overviews for each in overview.troubles()),
            columns=listing.COLUMNS,
            rows=found.rows,
            more=found.more,
            sort=by.name,
            down=goes_down,
            q=request.query.get("q", ""),
        )
        answer.enable_compression()
        return answer

    async def queue(self, request: web.Request) -> web.Response:
        """One queue: its figures, and unless only these are asked for, its items and settings."""
        watch, queue = self._site.asked(request)
        (overview,) = self._look(watch)
        sample, live = self._sample(), request.query.get("live")
        if live == sample:
            return web.Response(status=204)
        shown = {
            "live": live is not None,
            "sample": sample,
            "said": said(request, queue),
            "acts": self._acts,
        } | self._figures(overview, queue)
        if live is None:
            shown |= await self._contents(request, watch, queue)
        return self._site.render("queue.html", **shown)

    async def item(self, request: web.Request) -> web.Response:
        """One item, as a whole."""
        watch, queue = self._site.asked(request)
        number, form = number_in(request, "id"), _form(request)
        try:
            waiting = await watch.asking.item(queue.encode(errors="surrogateescape"), number)
        except ClientError as error:
            raise web.HTTPBadGateway(text=f"{error}\n") from error
        shown_as, text = "", ""
        if waiting is not None and waiting.data is not None:
            shown_as, text = body.readable(waiting.data, form)
        elif waiting is not None:
            text = f"Larger than the {figures.size(WHOLE_BYTES)} that are shown here."
        return self._site.render(
            "item.html", server=watch.asking.name, queue=queue, number=number, form=form, forms=body.FORMS,
            shown_as=shown_as, item=_item(waiting, text) if waiting is not None else None,
        )  # fmt: skip

    def _look(self, *watches: Watch) -> list[Overview]:
        for watch in watches:
            watch.look()
        return [watch.overview for watch in watches]

    def _sample(self) -> str:
        return str(max(watch.number for watch in self._site.watches.values()))

    def _figures(self, overview: Overview, queue: str) -> dict[str, Any]:
        """Return what the page of a queue shows and keeps up to date."""
        view = overview.queues.get(queue)
        shown: dict[str, Any] = {
            "server": overview.server,
            "queue": queue,
            "view": view,
            "width": POINTS,
            "troubles": [each for each in overview.troubles() if each.queue in ("", queue)],
        }
        if view is None:
            return shown
        stats, history = view.stats, self._histories.find(overview.server, queue)
        texts = (
            figures.count(stats.items),
            f"{figures.rate(view.rate_in)} / {figures.rate(view.rate_out)}",
            figures.age(stats.head_age),
            figures.count(stats.waiters),
            figures.count(view.reserved),
        )
        now = time.monotonic()
        shown["charts"] = [
            {
                "title": title,
                "text": text,
                "classes": classes,
                "paths": sparkline.paths(*(history.series(name, now) for name in series)) if history else (),
            }
            for (title, series, classes), text in zip(CHARTS, texts, strict=True)
        ]
        shown["figures"] = [
            ("bytes", figures.size(stats.bytes)),
            ("delayed", figures.count(stats.delayed_items)),
            ("stored since the start", figures.count(stats.total_items)),
            ("expired", figures.count(stats.expired_items)),
            ("discarded as the queue was full", figures.count(stats.discarded)),
            ("sets sent again", figures.count(stats.duplicates)),
            ("reserved and came back", figures.count(stats.canceled_transactions)),
            ("on the disk", figures.size(stats.logsize)),
        ]
        parent = queue.partition("+")[0]
        shown["parent"] = parent if parent != queue else ""
        shown["children"] = sorted(name for name in overview.queues if name.startswith(f"{queue}+"))
        return shown

    async def _contents(self, request: web.Request, watch: Watch, queue: str) -> dict[str, Any]:
        """Return what the page of a queue shows once."""
        start, form = number_in(request, "at"), _form(request)
        key = queue.encode(errors="surrogateescape")
        contents: dict[str, Any] = {
            "at": start, "form": form, "forms": body.FORMS,
            "items": [], "settings": {}, "error": "", "next": 0,
        }  # fmt: skip
        try:
            items, settings = await asyncio.gather(
                watch.asking.items(key, start, ITEMS_PER_PAGE + 1), watch.asking.settings(key)
            )
        except ClientError as error:
            contents["error"] = str(error)
            return contents
        contents["settings"] = settings
        if len(items) > ITEMS_PER_PAGE:
            contents["next"] = items.pop().id
        contents["items"] = [_item(waiting, _preview(waiting, form)) for waiting in items]
        return contents


def _item(waiting: Waiting, text: str) -> dict[str, Any]:
    return {
        "id": waiting.id,
        "text": text,
        "size": figures.size(waiting.size),
        "age": figures.age(waiting.age),
        "attempts": waiting.attempts,
        "expires": "" if waiting.expires is None else figures.age(waiting.expires),
        "flags": waiting.flags,
    }


def _preview(waiting: Waiting, form: str) -> str:
    if waiting.data is None:
        return "(large)" if waiting.size > PREVIEW_BYTES else "(taken meanwhile)"
    _, text = body.readable(waiting.data, "text" if form == "auto" and waiting.data.isascii() else form)
    return text if len(text) <= PREVIEW_CHARACTERS else f"{text[:PREVIEW_CHARACTERS]}…"


def _form(request: web.Request) -> str:
    form = request.query.get("as", "auto")
    return form if form in body.FORMS else "auto"
