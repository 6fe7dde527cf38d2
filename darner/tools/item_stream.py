"""Items in a stream of bytes, each ended by a separator. No I/O."""


class Splitter:
    """Splits bytes that come in pieces into items."""

    def __init__(self, separator: bytes | None) -> None:
        """`separator` is one byte; None if all bytes are one item."""
        self._separator = separator
        self._begun: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes that came; return the items that are whole now."""
        if self._separator is None or self._separator not in data:
            self._begun.append(data)
            return []
        first, *rest = data.split(self._separator)
        items = [b"".join([*self._begun, first]), *rest]
        self._begun = [items.pop()]
        return items

    def end(self) -> list[bytes]:
        """Return what has come since the last separator, if that is an item."""
        left = b"".join(self._begun)
        return [left] if left or self._separator is None else []
