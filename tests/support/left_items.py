"""Items of several kinds that are there when a server ends."""

from running import Wire


def leave_items(wire: Wire) -> None:
    """Leave `b` and `c` reserved and `d` waiting in `many`; in `gone` an item that expires in a second, and
    one that does not; and in `tried`, whose items have two attempts, one that has had both."""
    for data in (b"a", b"b", b"c", b"d"):
        wire.set(b"many", data)
    assert [wire.get(b"many/open") for _ in range(3)] == [b"a", b"b", b"c"]
    assert wire.get(b"many/close") is None
    wire.set(b"gone", b"expired", exptime=1)
    wire.set(b"gone", b"stays")
    wire.set(b"tried", b"p")
    for _ in range(2):
        assert wire.get(b"tried/open") == b"p"
        wire.get(b"tried/abort")
