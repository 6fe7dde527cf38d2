"""The outbox next to a transaction."""

import contextlib
import sqlite3

import pytest
from running import until


class Shop:
    """The example's database, and its programs."""

    def __init__(self, examples, path) -> None:
        self._examples, self._path = examples, path
        self.order("3 apples")
        self.database = sqlite3.connect(path, isolation_level=None)

    def order(self, what: str) -> None:
        self._examples.run("outbox.py", "--database", self._path, "order", what)

    def start(self, command: str):
        return self._examples.start("outbox.py", "--database", self._path, command)

    def count(self, table: str) -> int:
        return self.database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]

    def stat(self, name: str) -> int:
        return self._examples.server.stat(f"queue_shipments_{name}")


@pytest.fixture
def shop(examples, tmp_path):
    shop = Shop(examples, tmp_path / "shop.sqlite")
    with contextlib.closing(shop.database):
        yield shop


def test_each_order_is_shipped(shop):
    shop.start("relay")
    ship = shop.start("ship")
    ship.wait_for("shipped 3 apples")
    shop.order("1 plum")
    ship.wait_for("shipped 1 plum")
    until(lambda: (shop.count("orders"), shop.count("outbox"), shop.count("shipped")) == (2, 0, 2))


def test_a_relay_killed_between_put_and_delete_stores_nothing_twice(shop):
    shop.database.execute("BEGIN IMMEDIATE")  # others may read, but not delete
    relay = shop.start("relay")
    until(lambda: shop.stat("items") == 1, 20)
    relay.kill()
    shop.database.execute("ROLLBACK")
    assert shop.count("outbox") == 1
    shop.start("relay")
    until(lambda: shop.count("outbox") == 0, 20)
    assert (shop.stat("items"), shop.stat("duplicates")) == (1, 1)


def test_a_shipper_killed_before_it_closes_ships_nothing_twice(shop):
    shop.start("relay")
    shop.database.execute("BEGIN IMMEDIATE")
    ship = shop.start("ship")
    until(lambda: shop.stat("open_transactions") == 1, 20)
    shop.database.execute("INSERT INTO shipped VALUES (1, '3 apples')")  # done, but not closed
    ship.kill()
    shop.database.execute("COMMIT")
    shop.start("ship").wait_for("3 apples were shipped before")
    until(lambda: shop.stat("items") == shop.stat("open_transactions") == 0)
    assert shop.count("shipped") == 1


def test_messages_outlive_a_queue_server_that_is_down(shop, examples):
    examples.server.kill()
    relay = shop.start("relay")
    relay.wait_for("again")
    assert shop.count("outbox") == 1
    examples.server.start()
    until(lambda: shop.count("outbox") == 0, 20)
    assert shop.stat("items") == 1
