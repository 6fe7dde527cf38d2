# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""The counters of the server. Each queue has others of its own."""


class Counters:
    """How often something happened since the start or the last `stats reset`."""

    __slots__ = (
        "auth_cmds", "auth_errors", "bytes_read", "bytes_written", "cmd_flush", "cmd_get", "cmd_meta",
        "cmd_peek", "cmd_set", "conn_yields", "delete_hits", "delete_misses", "get_hits", "get_misses",
        "noreply_errors", "rejected_connections", "total_connections",
    )  # fmt: skip

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Set all counters to 0."""
        self.total_connections = 0
        self.cmd_get = 0
        self.cmd_set = 0
        self.cmd_peek = 0
        # meta commands, which are counted for what they do as well
        self.cmd_meta = 0
        self.get_hits = 0
        self.get_misses = 0
        # received from and sent to clients, TLS not counted
        self.bytes_read = 0
        self.bytes_written = 0
        # errors that no client was told of, for its request had `noreply`
        self.noreply_errors = 0
        self.cmd_flush = 0
        # deletes of queues, of cursors and, by `md`, of reserved items: of what was there, and was not
        self.delete_hits = 0
        self.delete_misses = 0
        # connections that were turned away, for there were too many
        self.rejected_connections = 0
        # logins, and those that failed
        self.auth_cmds = 0
        self.auth_errors = 0
        # turns of a connection that ended before all it had sent was served
        self.conn_yields = 0
