"""What the page changes: each act is confirmed in a form, and leaves a line in the log."""

from collections.abc import Mapping
from typing import Any

import structlog
from aiohttp import web

from darner.client.errors import BadRequestError
from darner.errors import DarnerError, ToolError
from darner.printable import printable
from darner.web import figures
from darner.web.guard import USER, Guard
from darner.web.links import link, queue_id, queue_named
from darner.web.site import Site, number_in
from darner.web.watch import Watch

log = structlog.get_logger()

# What can be done, and what is said then.
ACTS = {
    "put": "An item was put on {queue}.",
    "move": "{items} went from {queue} to the other queue.",
    "flush": "{queue} was flushed.",
    "delete": "{queue} was deleted.",
}
MOST_MOVED = 100_000


def said(request: web.Request, queue: str) -> str:
    """Return what the page of a queue says after an act; nothing if there was none."""
    items = figures.plural(number_in(request, "items", 0), "item")
    return ACTS.get(request.query.get("done", ""), "").format(queue=printable(queue), items=items)


class Acts:
    """The forms, and what they do."""

    def __init__(self, site: Site, guard: Guard, *, allows_changes: bool) -> None:
        self._site = site
        self._guard = guard
        self._allows_changes = allows_changes

    def routes(self) -> list[web.AbstractRouteDef]:
        """Return what is answered at which address."""
        return [web.get("/act/{act}", self.ask), web.post("/act/{act}", self.act)]

    async def ask(self, request: web.Request) -> web.Response:
        """The form that an act is confirmed with."""
        return self._form(request)

    async def act(self, request: web.Request) -> web.Response:
        """Do what a form asks for, and write it to the log. A move is first shown, and done if that is
        confirmed."""
        fields = await self._guard.form(request)
        watch, queue = self._site.asked(request)
        act = self._act(request)
        if act in ("flush", "delete") and fields.get("sure", "").strip() != printable(queue):
            return self._form(request, fields, "That is not the name of the queue: nothing was done.")
        audit = log.bind(act=act, queue=queue_id(queue), server=watch.asking.name, user=request[USER] or "-",
                         peer=request.remote)  # fmt: skip
        client, items = watch.asking.client, 0
        try:
            if act == "move":
                target, most = _move_in(fields)
                if "confirmed" not in fields:
                    return await self._dry_run(request, fields, target, most)
                items = await _move(watch, queue, target, most, audit)
            elif act == "put":
                text = fields.get("text", "").replace("\r\n", "\n")
                await client.put(queue, text.encode(errors="surrogateescape"))
            elif act == "flush":
                await client.flush(queue)
            else:
                await client.delete(queue)
        except DarnerError as error:
            audit.warning("change by the page failed", error=str(error))
            return self._form(request, fields, str(error))
        audit.info("change by the page")
        await watch.poll()
        raise web.HTTPSeeOther(
            link("/queue", server=watch.asking.name, queue=queue_id(queue), done=act, items=items)
        )

    async def _dry_run(
        self, request: web.Request, fields: Mapping[str, str], target: str, most: int
    ) -> web.Response:
        """Show what a move would do."""
        watch, queue = self._site.asked(request)
        found = await watch.asking.dry_run(queue, target, most)
        if not found.items:
            raise ToolError(f"nothing waits in {printable(queue)}")
        shown = {
            "amount": figures.plural(found.items, "item"),
            "size": figures.size(found.bytes),
            "target": printable(target),
            # what comes meanwhile was not confirmed
            "most": found.items,
            "warnings": found.warnings,
        }
        return self._form(request, fields, dry_run=shown)

    def _form(
        self,
        request: web.Request,
        fields: Mapping[str, str] | None = None,
        error: str = "",
        dry_run: Mapping[str, Any] | None = None,
    ) -> web.Response:
        watch, queue = self._site.asked(request)
        view = watch.overview.queues.get(queue)
        answer = self._site.render(
            "act.html", act=self._act(request), server=watch.asking.name, queue=queue,
            items=figures.plural(view.stats.items if view is not None else 0, "item"),
            token=self._guard.token(request), error=error, dry_run=dry_run,
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


def _move_in(fields: Mapping[str, str]) -> tuple[str, int]:
    """Return to which queue a form asks to move, and how many items at most."""
    most = fields.get("most", "")
    if not (most.isascii() and most.isdigit() and len(most) < 16 and 0 < int(most) <= MOST_MOVED):
        raise BadRequestError(f"how many is a number from 1 to {MOST_MOVED}")
    return queue_named(fields.get("to", "").strip()), int(most)


async def _move(watch: Watch, queue: str, target: str, most: int, audit: Any) -> int:
    """Move so many items at most; return how many were."""
    audit.info("move by the page begins", to=queue_id(target), most=most)
    done = await watch.asking.move(queue, target, most)
    audit.info(
        "move by the page ends", to=queue_id(target), items=done.items, unsettled=done.unsettled,
        doubled=sorted(done.doubled),
    )  # fmt: skip
    return done.items
