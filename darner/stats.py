# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""What the server counts, apart from what each queue counts itself."""


class Counters:
    """Events since the start or the last `stats reset`."""

    __slots__ = (
        "bytes_read", "bytes_written", "cmd_get", "cmd_peek", "cmd_set", "get_hits", "get_misses",
        "noreply_errors", "total_connections",
    )  # fmt: skip

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Zero them all."""
        self.total_connections = 0
        self.cmd_get = 0
        self.cmd_set = 0
        self.cmd_peek = 0
        self.get_hits = 0
        self.get_misses = 0
        # from and to clients, as they crossed the connection
        self.bytes_read = 0
        self.bytes_written = 0
        # errors that a client's noreply hid from it
        self.noreply_errors = 0
