#!/usr/bin/env python3
"""Fan-out: each order goes to three readers, and none of them waits for another.

`orders+mail` and `orders+audit` are children of the queue `orders`. What is put on `orders` is put on
both of them, too, in one step. So each reader has a queue of its own: it reads at its own pace, and a
reader that is down misses nothing. A child comes to be when its reader first asks for it. It gets what is
put from then on.

In four terminals, with a server from `make run`:

    python examples/fanout.py read pack
    python examples/fanout.py read mail
    python examples/fanout.py read audit
    python examples/fanout.py order "3 apples"

End a reader, by Ctrl-C or `kill -9`, order more, and start it again: it reads what it has missed. An
order that it was working on comes first. A reader whose work fails tries that order again after a pause,
and reads on meanwhile: order "2 pears", which are out of stock.
"""

import time
from collections.abc import Callable

import click

from darner.client import Client, ConnectionFailedError, ConnectionLostError

PAUSE_S = 1.0
OUT_OF_STOCK = "pears"


class OutOfStockError(Exception):
    """There is nothing to pack, for now."""


def pack(order: str) -> None:
    """Pack what was ordered; OutOfStockError if there is none."""
    if OUT_OF_STOCK in order:
        raise OutOfStockError(OUT_OF_STOCK)
    print(f"packed {order}", flush=True)


def mail(order: str) -> None:
    """Write to the customer."""
    print(f"mailed that {order} are on their way", flush=True)


def audit(order: str) -> None:
    """Keep a record."""
    print(f"recorded {order}", flush=True)


READERS: dict[str, tuple[str, Callable[[str], None]]] = {
    "pack": ("orders", pack),
    "mail": ("orders+mail", mail),
    "audit": ("orders+audit", audit),
}


@click.group()
@click.option("--server", envvar="DARNER_URL", default="darner://127.0.0.1:22133", show_default=True)
@click.pass_context
def main(context: click.Context, server: str) -> None:
    """Put orders, or read them."""
    context.obj = context.with_resource(Client(server))


@main.command
@click.argument("order")
@click.pass_obj
def order(client: Client, order: str) -> None:
    """Put an order on the queue of each reader."""
    client.put("orders", order.encode())


@main.command
@click.argument("reader", type=click.Choice(list(READERS)))
@click.pass_obj
def read(client: Client, reader: str) -> None:
    """Work on the orders of one reader, as they come."""
    queue, work = READERS[reader]
    while True:
        try:
            read_one(client, queue, work)
        except (ConnectionFailedError, ConnectionLostError) as error:
            # What was reserved is back in the queue: connect again, and read on.
            click.echo(f"{error}; trying again", err=True)
            time.sleep(1)


def read_one(client: Client, queue: str, work: Callable[[str], None]) -> None:
    """Wait for an order, and work on it; it leaves the queue when the work is done."""
    with client.reserve(queue, timeout=60) as item:
        if item is None:
            return
        try:
            work(item.value.decode())
        except Exception as error:
            click.echo(f"{queue}: attempt {item.attempts + 1} failed: {error!r}", err=True)
            item.retry(delay=PAUSE_S)


if __name__ == "__main__":
    main()
