"""The log shipper."""

import random

from running import until


def lines(chance: random.Random, count: int) -> bytes:
    """Return lines of any bytes, as programs write them to logs."""
    return b"".join(
        chance.randbytes(chance.randrange(200)).replace(b"\n", b" ") + b"\n" for _ in range(count)
    )


def test_the_copy_is_the_same_whoever_is_killed_meanwhile(examples, tmp_path):
    chance = random.Random(6)
    log, copies = tmp_path / "app log", tmp_path / "copies"
    log.write_bytes(lines(chance, 2_000))
    ship = examples.start("log_shipper.py", "ship", log)
    collect = examples.start("log_shipper.py", "collect", copies)

    def copied_bytes() -> int:
        return sum(copy.stat().st_size for copy in copies.glob("*"))

    for kill in (ship.kill, collect.kill, examples.server.kill):
        before = copied_bytes()
        with log.open("ab") as file:
            file.write(lines(chance, 1_000))
        until(lambda before=before: copied_bytes() > before, 20)
        kill()
        if kill == ship.kill:
            ship = examples.start("log_shipper.py", "ship", log)
        elif kill == collect.kill:
            collect = examples.start("log_shipper.py", "collect", copies)
        else:
            examples.server.start()
    with log.open("ab") as file:
        file.write(b"the last line\nand one without its end")
    whole = log.read_bytes().removesuffix(b"and one without its end")
    until(lambda: copied_bytes() >= len(whole), 30)
    until(lambda: next(copies.iterdir()).read_bytes() == whole, 30)
    until(lambda: examples.server.stat("queue_log_items") == 0)
