#!/usr/bin/env python3
"""A web app that takes webhooks and answers at once; workers deliver them, with as many tries as it takes.

    python examples/webhooks/app.py
    python -m darner.work examples.webhooks.deliver:deliver --queue webhooks --codec json

    curl -i 127.0.0.1:8000/webhooks -H 'Idempotency-Key: order-17-paid' \\
        -d '{"url": "http://127.0.0.1:9000/", "body": {"order": 17, "paid": true}}'
    curl -i 127.0.0.1:8000/webhooks      # how many wait, and which have failed for good

A caller that does not know whether its request came through sends it again with the same
`Idempotency-Key`: the webhook is stored once. `202` means that it is on the disk of the queue server,
whatever dies from then on. If it could not be stored, the answer is `503`.
"""

import contextlib
import json
import os
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from darner.client import AsyncClient, ClientError

SERVER = os.environ.get("DARNER_URL", "darner://127.0.0.1:22133")
FAILED_SHOWN = 100


@contextlib.asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[Mapping[str, Any]]:
    """Keep one client, with its pool of connections, for the life of the app."""
    async with AsyncClient(SERVER, codec="json", timeout=5) as client:
        yield {"client": client}


async def take(request: Request) -> JSONResponse:
    """Put a webhook on the queue."""
    try:
        sent = await request.json()
        hook = {"url": str(sent["url"]), "body": sent["body"]}
    except (json.JSONDecodeError, KeyError, TypeError):
        return JSONResponse({"error": "a webhook has a url and a body"}, 400)
    if not hook["url"].startswith(("http://", "https://")):
        return JSONResponse({"error": "the url must be one of http or https"}, 400)
    hook["id"] = request.headers.get("Idempotency-Key") or uuid.uuid4().hex
    await request.state.client.put("webhooks", hook, id=hook["id"])
    return JSONResponse({"id": hook["id"]}, 202)


async def show(request: Request) -> JSONResponse:
    """Say how many webhooks wait, and which have failed for good: those stay in their queue."""
    client: AsyncClient = request.state.client
    queues = await client.queues()
    waiting = queues["webhooks"].items if "webhooks" in queues else 0
    failed = []
    async for item in client.browse("webhooks.failed"):
        failed.append(item.value)
        if len(failed) == FAILED_SHOWN:
            break
    return JSONResponse({"waiting": waiting, "failed": failed})


async def refuse(_: Request, error: Exception) -> JSONResponse:
    """Answer a request that the queue server did not carry out."""
    return JSONResponse({"error": f"try again: {error}"}, 503, {"Retry-After": "1"})


app = Starlette(
    routes=[
        Route("/webhooks", take, methods=["POST"]),
        Route("/webhooks", show, methods=["GET"]),
    ],
    exception_handlers={ClientError: refuse},
    lifespan=lifespan,
)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8000")))
