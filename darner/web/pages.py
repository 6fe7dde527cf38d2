"""The pages: what is shown for an address."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import structlog
from aiohttp import web

from darner.client.errors import BadRequestError, ClientError
from darner.errors import DarnerError
from darner.printable import printable
from darner.tools.overview import Overview, duration
from darner.tools.waiting_items import Waiting
from darner.web import body, figures, listing, sparkline
from darner.web.asking import PREVIEW_BYTES, WHOLE_BYTES
from darner.web.guard import USER, Guard
from darner.web.history import POINTS, Histories
from darner.web.links import link, queue_id, queue_named
from darner.web.watch import Watch

log = structlog.get_logger()

HERE = Path(__file__).parent
ITEMS_PER_PAGE = 20
# How much of an item the list of a queue shows.
PREVIEW_CHARACTERS = 300
MOST_TROUBLES = 8
# What can be done, and what is said then.
ACTS = {
    "put": "An item was put on {}.",
    "move": "Items were moved from {}: {}.",
    "flush": "{} was flushed.",
    "delete": "{} was deleted.",
}
MOST_MOVED = 100_000
CHARTS = (
    ("items", ("items",), ("",)),
    ("in and out a second", ("rate_in", "rate_out"), ("i", "o")),
    ("the head waits", ("head_age",), ("",)),
    ("clients that wait", ("waiters",), ("",)),
    ("reserved", ("reserved",), ("",)),
)


class Pages:
    """The pages of some servers."""

    def __init__(
        self, watches: Mapping[str, Watch], histories: Histories, guard: Guard, *, allows_changes: bool
    ) -> None:
        """`watches` has each server's by its name."""
        self._watches = watches
        self._histories = histories
        self._guard = guard
        self._allows_changes = allows_changes
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE / "templates"),
            autoescape=True,
            # an upgrade puts new templates under a page that runs
            auto_reload=False,
            trim_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        self._templates.globals.update(
            link=link, id=queue_id, seen=printable, duration=duration, count=figures.count,
            plural=figures.plural, most_troubles=MOST_TROUBLES,
        )  # fmt: skip

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return what is answered at which address."""
        return [
            web.get("/", self.queues),
            web.get("/queue", self.queue),
            web.get("/item", self.item),
            web.get("/act/{act}", self.ask_for_act),
            web.post("/act/{act}", self.act),
            web.static("/static", HERE / "static"),
        ]

    async def queues(self, request: web.Request) -> web.Response:
        """All queues of all servers."""
        overviews = self._look(*self._watches.values())
        sample = self._sample()
        if request.query.get("live") == sample:
            return web.Response(status=204)
        by = listing.column_named(request.query.get("sort", ""))
        goes_down = bool(request.query.get("down")) if "sort" in request.query else by.goes_down
        found = listing.listing(
            overviews, self._histories, time.monotonic(),
            part=request.query.get("q", ""), by=by, goes_down=goes_down,
        )  # fmt: skip
        answer = self._page(
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
        watch, queue = self._asked(request)
        (overview,) = self._look(watch)
        sample, live = self._sample(), request.query.get("live")
        if live == sample:
            return web.Response(status=204)
        shown = {
            "live": live is not None,
            "sample": sample,
            "said": ACTS.get(request.query.get("done", ""), "").format(
                printable(queue), _number(request, "items")
            ),
            "acts": tuple(ACTS) if self._allows_changes else (),
        } | self._figures(overview, queue)
        if live is None:
            shown |= await self._contents(request, watch, queue)
        return self._page("queue.html", **shown)

    async def item(self, request: web.Request) -> web.Response:
        """One item, as a whole."""
        watch, queue = self._asked(request)
        number, form = _number(request, "id"), _form(request)
        try:
            waiting = await watch.asking.item(queue.encode(errors="surrogateescape"), number)
        except ClientError as error:
            raise web.HTTPBadGateway(text=f"{error}\n") from error
        shown_as, text = "", ""
        if waiting is not None and waiting.data is not None:
            shown_as, text = body.readable(waiting.data, form)
        elif waiting is not None:
            text = f"Larger than the {figures.size(WHOLE_BYTES)} that are shown here."
        return self._page(
            "item.html", server=watch.asking.name, queue=queue, number=number, form=form, forms=body.FORMS,
            shown_as=shown_as, item=_item(waiting, text) if waiting is not None else None,
        )  # fmt: skip

    async def ask_for_act(self, request: web.Request) -> web.Response:
        """The form that an act is confirmed with."""
        return self._act_form(request)

    async def act(self, request: web.Request) -> web.Response:
        """Do what a form asks for, and write it to the log."""
        fields = await self._guard.form(request)
        watch, queue = self._asked(request)
        act = self._act(request)
        if act in ("flush", "delete") and fields.get("sure", "").strip() != printable(queue):
            return self._act_form(request, fields, "That is not the name of the queue: nothing was done.")
        audit = log.bind(act=act, queue=queue_id(queue), server=watch.asking.name, user=request[USER] or "-",
                         peer=request.remote)  # fmt: skip
        client, items = watch.asking.client, 0
        try:
            if act == "move":
                items = await self._move(watch, queue, fields, audit)
            elif act == "put":
                text = fields.get("text", "").replace("\r\n", "\n")
                await client.put(queue, text.encode(errors="surrogateescape"))
            elif act == "flush":
                await client.flush(queue)
            else:
                await client.delete(queue)
        except DarnerError as error:
            audit.warning("change by the page failed", error=str(error))
            return self._act_form(request, fields, str(error))
        audit.info("change by the page")
        await watch.poll()
        raise web.HTTPSeeOther(
            link("/queue", server=watch.asking.name, queue=queue_id(queue), done=act, items=items)
        )

    async def _move(self, watch: Watch, queue: str, fields: Mapping[str, str], audit: Any) -> int:
        """Move as many items as a form asks for; return how many were."""
        most = fields.get("most", "")
        if not (most.isascii() and most.isdigit() and 0 < int(most[:9]) <= MOST_MOVED):
            raise BadRequestError(f"how many is a number from 1 to {MOST_MOVED}")
        target = queue_named(fields.get("to", "").strip())
        audit.info("move by the page begins", to=queue_id(target), most=int(most))
        done = await watch.asking.move(queue, target, int(most))
        audit.info("move by the page ends", to=queue_id(target), items=done.items, unsettled=done.unsettled)
        return done.items

    def _act_form(
        self, request: web.Request, fields: Mapping[str, str] | None = None, error: str = ""
    ) -> web.Response:
        watch, queue = self._asked(request)
        view = watch.overview.queues.get(queue)
        answer = self._page(
            "act.html", act=self._act(request), server=watch.asking.name, queue=queue,
            items=figures.plural(view.stats.items if view is not None else 0, "item"),
            token=self._guard.token(request), error=error,
            fields={"text": "", "to": "", "most": MOST_MOVED} | dict(fields or {}), most_moved=MOST_MOVED,
        )  # fmt: skip
        if error:
            answer.set_status(409)
        return answer

    def _act(self, request: web.Request) -> str:
        if not self._allows_changes:
            raise web.HTTPForbidden(text="This page only shows: start it with --allow-changes.\n")
        act = request.match_info["act"]
        if act not in ACTS:
            raise web.HTTPNotFound
        return act

    def _asked(self, request: web.Request) -> tuple[Watch, str]:
        """Return the server and the queue that are asked for."""
        try:
            return self._watches[request.query["server"]], queue_named(request.query["queue"])
        except (KeyError, BadRequestError):
            raise web.HTTPNotFound(text="There is no such server, or no queue can be called so.\n") from None

    def _look(self, *watches: Watch) -> list[Overview]:
        for watch in watches:
            watch.look()
        return [watch.overview for watch in watches]

    def _sample(self) -> str:
        return str(max(watch.number for watch in self._watches.values()))

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
        start, form = _number(request, "at"), _form(request)
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

    def _page(self, template: str, **shown: Any) -> web.Response:
        text = self._templates.get_template(template).render(shown)
        # a name may have bytes that are no UTF-8: they were made printable, but for what a stranger asked
        return web.Response(body=text.encode(errors="replace"), content_type="text/html", charset="utf-8")


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


def _number(request: web.Request, name: str) -> int:
    text = request.query.get(name, "1")
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 16):
        raise web.HTTPBadRequest(text=f"{name} is a number.\n")
    return max(int(text), 1)


def _form(request: web.Request) -> str:
    form = request.query.get("as", "auto")
    return form if form in body.FORMS else "auto"
