"""The command that looks at items and takes none: `peek`."""

import base64
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import click

from darner.cli.connecting import NOTHING, QUEUE, SETTINGS, each_server_options, epilog, for_each
from darner.cli.outcome import say
from darner.client import protocol
from darner.client.client import Client
from darner.client.servers import Servers
from darner.printable import printable
from darner.tools import waiting_items
from darner.tools.listing import label
from darner.tools.overview import duration
from darner.tools.waiting_items import Waiting

# Of an item, so many bytes are shown; one that is larger than LARGE_BYTES is not asked for.
SHOWN_BYTES = 1024
LARGE_BYTES = 1 << 20
_HEX_LINE = 16


@click.command(
    short_help="Look at the items of a queue, and leave them.",
    context_settings=SETTINGS,
    epilog=epilog(
        """
  darner peek work
  darner peek work -n 100 | less
  darner peek work --from 1042 -n 1 --all
  darner peek work --json | jq .id
  darner peek work/cursor=billing --hex       the next items that a cursor reads
""",
        nothing="nothing waits, as far as these items go",
    ),
)
@click.argument("queue", type=QUEUE)
@click.option(
    "-n", "count", type=click.IntRange(1), default=10, show_default=True, metavar="N", help="How many items."
)
@click.option(
    "--from", "start", type=click.IntRange(1), default=1, metavar="ID", help="Begin with the item of this id."
)
@click.option("--hex", "as_hex", is_flag=True, help="Show bytes and not text.")
@click.option(
    "--all",
    "is_whole",
    is_flag=True,
    help=f"Show items whole: else {SHOWN_BYTES} bytes of each, and none of one above 1 MiB.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for each item.")
@each_server_options
def peek(
    clients: Mapping[str, Client],
    *,
    queue: str,
    count: int,
    start: int,
    as_hex: bool,
    is_whole: bool,
    as_json: bool,
) -> None:
    """Show the next items of QUEUE, which stay where they are.

    What is not printable in an item is shown as Python writes it: \\x1b, \\u202e. Reserved and delayed
    items are not seen.
    """
    key = protocol.source_key(queue)
    most = None if is_whole else LARGE_BYTES

    def ask(address: str, client: Client) -> None:
        is_first = True
        for item in _items(client.servers, key, start, count, most):
            if as_json:
                say(
                    json.dumps({"server": address, "queue": label(queue)} | _as_json(item), ensure_ascii=True)
                )
                continue
            if not is_first:
                say("")
            is_first = False
            say(_head(item) + (f" server={address}" if len(clients) > 1 else ""))
            for line in _lines(item, as_hex=as_hex, is_whole=is_whole):
                say(line)
        if is_first:
            say(f"darner: {address}: nothing waits", err=True)
            sys.exit(NOTHING)

    for_each(clients, ask)


def _items(servers: Servers, key: bytes, start: int, count: int, most: int | None) -> Iterator[Waiting]:
    """Give items of one server from the id `start` on, with the bytes of those that have `most` at most."""
    (pool,) = servers.pools
    for _ in range(count):
        item = waiting_items.waiting_in(servers.ask_again(pool, waiting_items.look_line(key, start)))
        if item is None:
            return
        if most is None or item.size <= most:
            reply = servers.ask_again(pool, protocol.browse_line(key, item.id))
            item.data = waiting_items.data_in(reply, item.id)
        yield item
        start = item.id + 1


def _head(item: Waiting) -> str:
    figures = [f"id={item.id}", f"bytes={item.size}", f"age={duration(item.age)}"]
    figures += [f"attempts={item.attempts}", f"flags={item.flags}"]
    figures += [] if item.expires is None else [f"expires_in={duration(item.expires)}"]
    return " ".join(figures)


def _as_json(item: Waiting) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": item.id,
        "bytes": item.size,
        "age": item.age,
        "attempts": item.attempts,
        "flags": item.flags,
        "expires_in": item.expires,
    }
    if item.data is None:
        return found | {"data": None}
    try:
        return found | {"data": item.data.decode()}
    except UnicodeDecodeError:
        return found | {"data_base64": base64.b64encode(item.data).decode()}


def _lines(item: Waiting, *, as_hex: bool, is_whole: bool) -> Iterator[str]:
    """Give the lines that show an item."""
    if item.data is None:
        yield "(larger than 1 MiB: --all shows it)" if item.size > LARGE_BYTES else "(it was taken meanwhile)"
        return
    shown = item.data if is_whole else item.data[:SHOWN_BYTES]
    if as_hex:
        for at in range(0, len(shown), _HEX_LINE):
            part = shown[at : at + _HEX_LINE]
            text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
            yield f"{at:08x}  {part.hex(' '):<{3 * _HEX_LINE}} {text}"
    else:
        for line in shown.decode(errors="surrogateescape").removesuffix("\n").split("\n"):
            yield printable(line)
    if len(shown) < len(item.data):
        yield f"({len(item.data) - len(shown)} bytes more: --all shows them)"
