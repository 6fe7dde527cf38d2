# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""What the server counts, apart from what each queue counts itself."""


class Counters:
    """Events since the start or the last `stats reset`."""

    __slots__ = (
        "auth_cmds", "auth_errors", "bytes_read", "bytes_written", "cmd_flush", "cmd_get", "cmd_meta",
        "cmd_peek", "cmd_set", "conn_yields", "delete_hits", "delete_misses", "get_hits", "get_misses",
        "noreply_errors", "rejected_connections", "total_connections",
    )  # fmt: skip

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Zero them all."""
        self.total_connections = 0
        self.cmd_get = 0
        self.cmd_set = 0
        self.cmd_peek = 0
        # meta commands, whatever they do besides
        self.cmd_meta = 0
        self.get_hits = 0
        self.get_misses = 0
        # from and to clients, as they crossed the connection
        self.bytes_read = 0
        self.bytes_written = 0
        # errors that a client's noreply hid from it
        self.noreply_errors = 0
        self.cmd_flush = 0
        # of queues, cursors and, by `md`, reserved items that were there, and were not
        self.delete_hits = 0
        self.delete_misses = 0
        # connections for which there was no room
        self.rejected_connections = 0
        # logins, and those that failed
        self.auth_cmds = 0
        self.auth_errors = 0
        # turns that ended before all that a client had sent was served
        self.conn_yields = 0
