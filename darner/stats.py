"""What the server counts, apart from what each queue counts itself."""

from dataclasses import dataclass, fields


@dataclass(slots=True)
class Counters:
    """Events since the start or the last `stats reset`."""

    total_connections: int = 0
    cmd_get: int = 0
    cmd_set: int = 0
    cmd_peek: int = 0
    get_hits: int = 0
    get_misses: int = 0
    # from and to clients, as they crossed the connection
    bytes_read: int = 0
    bytes_written: int = 0
    # errors that a client's noreply hid from it
    noreply_errors: int = 0

    def reset(self) -> None:
        """Zero them all."""
        for field in fields(self):
            setattr(self, field.name, 0)
