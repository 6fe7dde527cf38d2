"""The fan-out to three readers."""

from running import until

QUEUES = {"pack": b"orders", "mail": b"orders+mail", "audit": b"orders+audit"}


def started(examples, reader):
    """Start a reader, and wait until it waits for an order."""
    program = examples.start("fanout.py", "read", reader)
    until(lambda: examples.server.waiters(QUEUES[reader]), 20)
    return program


def test_each_of_three_readers_gets_each_order(examples):
    readers = [started(examples, reader) for reader in QUEUES]
    for order in ("3 apples", "1 plum"):
        examples.run("fanout.py", "order", order)
    for reader in readers:
        reader.wait_for("3 apples")
        reader.wait_for("1 plum")


def test_a_reader_that_was_killed_gets_what_it_has_missed(examples):
    started(examples, "mail").kill()
    audit = started(examples, "audit")
    for order in ("3 apples", "1 plum"):
        examples.run("fanout.py", "order", order)
    audit.wait_for("1 plum")
    mail = started(examples, "mail")
    mail.wait_for("3 apples")
    mail.wait_for("1 plum")


def test_work_that_fails_is_tried_again_and_holds_up_nothing(examples):
    pack = started(examples, "pack")
    examples.run("fanout.py", "order", "2 pears")
    pack.wait_for("attempt 1 failed")
    examples.run("fanout.py", "order", "3 apples")
    pack.wait_for("packed 3 apples")
    pack.wait_for("attempt 3 failed")


def test_a_reader_outlives_the_server(examples):
    audit = started(examples, "audit")
    examples.server.kill()
    audit.wait_for("trying again")
    examples.server.start()
    examples.run("fanout.py", "order", "3 apples")
    audit.wait_for("recorded 3 apples")
