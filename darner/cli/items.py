"""The commands that put items on a queue and take them off: `put` and `get`."""

import base64
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import click

from darner.cli.connecting import NOTHING, QUEUE, SETTINGS, Seconds, epilog, server_options
from darner.cli.outcome import say
from darner.cli.progress import progress
from darner.client import protocol
from darner.client.client import Client
from darner.client.item import Item
from darner.printable import printable
from darner.tools.item_stream import Splitter
from darner.tools.putting import Putting
from darner.tools.taking import take

_READ_BYTES = 1 << 17
# How many items are reserved at once.
_RESERVED = 100
_WAIT = Seconds(protocol.MAX_WAIT_MS // 1000)


@click.command(
    short_help="Put items on a queue.",
    context_settings=SETTINGS,
    epilog=epilog("""
  darner put work hello                       one item
  grep ERROR app.log | darner put errors      each line an item
  find . -type f -print0 | darner put -0 files
  darner put --whole reports < report.pdf     all of it is one item
  darner put --id batch-7 work < list.txt     again after a failure: no line is there twice
"""),
)
@click.argument("queue", type=QUEUE)
@click.argument("value", required=False)
@click.option("-0", "--null", is_flag=True, help="Items of standard input end with a NUL, not a line end.")
@click.option("--whole", is_flag=True, help="All of standard input is one item.")
@click.option("--delay", type=_WAIT, default=0, metavar="S", help="Out of sight for so many seconds.")
@click.option(
    "--expire",
    type=Seconds(protocol.MAX_EXPIRE_S),
    default=0,
    metavar="S",
    help="Dropped if nobody takes it within S s.",
)
@click.option(
    "--id", metavar="ID", help="Store nothing that was put with this id within dedup_window; of several items"
    " the ids are ID-1, ID-2 and so on.",
)  # fmt: skip
@click.option("--sync", is_flag=True, help="Survive the death of the machine, too, not just of the server.")
@server_options
def put(
    client: Client, queue: str, value: str | None, *, null: bool, whole: bool, id: str | None, **options: Any
) -> None:
    """Put VALUE on QUEUE; without it, or if it is -, each line of standard input.

    Items are put as they come. If it fails half way, it says how many are stored for sure.
    """
    if value not in (None, "-"):
        if null or whole:
            raise click.UsageError("--null and --whole are for standard input: give no VALUE")
        client.put(queue, os.fsencode(value or ""), id=id, **options)
        return
    if null and whole:
        raise click.UsageError("--null or --whole: one of them")
    splitter = Splitter(None if whole else b"\0" if null else b"\n")
    if whole and id is not None:
        client.put(queue, next(_items(splitter))[0], id=id, **options)
        return
    putting = Putting(client, queue, id=id, **options)
    with progress("put", None) as tell:
        for items in _items(splitter):
            putting.put(items)
            tell(putting.stored)
    if sys.stderr.isatty():
        say(f"{putting.stored} items are stored", err=True)


def _items(splitter: Splitter) -> Iterator[list[bytes]]:
    """Give the items of standard input as they come."""
    while data := os.read(sys.stdin.fileno(), _READ_BYTES):
        if items := splitter.feed(data):
            yield items
    if items := splitter.end():
        yield items


@click.command(
    short_help="Take items off a queue.",
    context_settings=SETTINGS,
    epilog=epilog(
        """
  darner get work                             the next item
  darner get work --timeout 30 || echo none   wait for one
  darner get --open --all work > work.txt     all; what was not written stays in the queue
  darner get -0 --all files | xargs -0 ls -l
  darner get --json -n 10 work | jq .id
""",
        nothing="there was no item",
    ),
)
@click.argument("queue", type=QUEUE)
@click.option("-n", "--count", type=click.IntRange(min=1), default=1, metavar="N", help="How many, at most.")
@click.option("--all", "all_", is_flag=True, help="Until the queue is empty.")
@click.option("--timeout", type=_WAIT, default=0, metavar="S", help="Wait so many seconds for each item.")
@click.option("-0", "--null", is_flag=True, help="Write a NUL behind each item, not a line end.")
@click.option(
    "--open", "opens", is_flag=True, help="Remove an item only after it was written: a broken pipe or a kill"
    " loses nothing, and it may come twice.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line: id, attempts, flags, data.")
@server_options
def get(
    client: Client,
    queue: str,
    *,
    count: int,
    all_: bool,
    timeout: float,
    null: bool,
    opens: bool,
    as_json: bool,
) -> None:
    """Take items off QUEUE and write them to standard output, each with a line end.

    An item is gone from the queue when it is sent, and lost if it cannot be written, unless there is --open.
    A terminal gets items as text, with what is not printable escaped.
    """
    end = b"\0" if null else b"\n"
    found = 0
    while all_ or found < count:
        wanted = _RESERVED if all_ else min(count - found, _RESERVED)
        if opens:
            with client.reserve_many(queue, wanted, timeout) as items:
                for each in items:
                    _write(each, end, as_json=as_json)
                sys.stdout.buffer.flush()
            came = len(items)
        else:
            item = take(client, queue, timeout)
            came = item is not None
            if item is not None:
                _write(item, end, as_json=as_json)
                sys.stdout.buffer.flush()
        if not came:
            break
        found += came
    if not found:
        sys.exit(NOTHING)


def _write(item: Item, end: bytes, *, as_json: bool) -> None:
    out = sys.stdout.buffer
    if as_json:
        out.write(json.dumps(_described(item)).encode() + b"\n")
    elif sys.stdout.isatty():
        text = item.data.decode(errors="surrogateescape")
        out.write("\n".join(map(printable, text.split("\n"))).encode() + b"\n")
    else:
        out.write(item.data)
        out.write(end)


def _described(item: Item) -> dict[str, Any]:
    found: dict[str, Any] = {"id": item.id, "attempts": item.attempts, "flags": item.flags}
    try:
        return found | {"data": item.data.decode()}
    except UnicodeDecodeError:
        return found | {"data_base64": base64.b64encode(item.data).decode()}
