#!/usr/bin/env python3
"""An outbox: an order is in the database if and only if its message is in the queue, and there it is once.

A program that writes to a database and then puts a message may die in between, and the message is never
sent. If it puts the message first, there may be a message without an order. Here the order and its
message are written in one transaction, into two tables. A relay takes the messages out of the outbox:
put, then delete.

    python examples/outbox.py order "3 apples"
    python examples/outbox.py relay              # in a terminal of its own
    python examples/outbox.py ship               # in another one

A relay that dies after the put and before the delete puts the message again when it runs again. The
message has the id that it got in the transaction, so that the server stores it once. The server knows an
id for `dedup_window`, five minutes by default: set it to the longest time that the relay may be down, as
in examples/darner.toml.

`ship` may die, too, after its work and before it closes the message, and then it gets the message again.
So it keeps the number of the order in the transaction in which it does its work.
"""

import json
import sqlite3
import time
from pathlib import Path

import click

from darner.client import Client, ClientError

QUEUE = "shipments"
TABLES = """
    CREATE TABLE IF NOT EXISTS orders (number INTEGER PRIMARY KEY, what TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS outbox (
        id TEXT PRIMARY KEY DEFAULT (lower(hex(randomblob(16)))), message TEXT NOT NULL
    );
    CREATE TABLE IF NOT EXISTS shipped (number INTEGER PRIMARY KEY, what TEXT NOT NULL);
"""


@click.group()
@click.option("--database", default="shop.sqlite", show_default=True, type=click.Path(path_type=Path))
@click.pass_context
def main(context: click.Context, database: Path) -> None:
    """Take orders, relay their messages, and ship them."""
    context.obj = context.with_resource(sqlite3.connect(database))
    context.obj.executescript(TABLES)


SERVER = click.option("--server", envvar="DARNER_URL", default="darner://127.0.0.1:22133", show_default=True)


@main.command
@click.argument("what")
@click.pass_obj
def order(database: sqlite3.Connection, what: str) -> None:
    """Take an order: it and its message, or neither."""
    with database:
        number = database.execute("INSERT INTO orders (what) VALUES (?)", (what,)).lastrowid
        message = json.dumps({"number": number, "what": what})
        database.execute("INSERT INTO outbox (message) VALUES (?)", (message,))


@main.command
@SERVER
@click.pass_obj
def relay(database: sqlite3.Connection, server: str) -> None:
    """Put the messages in the outbox on the queue, those to come as well."""
    with Client(server) as client:
        while True:
            rows = database.execute("SELECT id, message FROM outbox ORDER BY rowid LIMIT 100").fetchall()
            if not rows:
                time.sleep(0.2)
                continue
            try:
                client.put_many(QUEUE, [message.encode() for _, message in rows], ids=[id for id, _ in rows])
            except ClientError as error:
                click.echo(f"{error}; putting these messages again", err=True)
                time.sleep(1)
                continue
            with database:
                database.executemany("DELETE FROM outbox WHERE id = ?", [(id,) for id, _ in rows])


@main.command
@SERVER
@click.pass_obj
def ship(database: sqlite3.Connection, server: str) -> None:
    """Ship what was ordered."""
    with Client(server, codec="json") as client:
        while True:
            try:
                with client.reserve(QUEUE, timeout=60) as item:
                    if item is not None:
                        ship_once(database, **item.value)
            except ClientError as error:
                click.echo(f"{error}; trying again", err=True)
                time.sleep(1)


def ship_once(database: sqlite3.Connection, number: int, what: str) -> None:
    """Ship an order, unless that was done before."""
    with database:
        new = database.execute("INSERT OR IGNORE INTO shipped VALUES (?, ?)", (number, what)).rowcount
        click.echo(f"shipped {what}" if new else f"{what} were shipped before")


if __name__ == "__main__":
    main()
