# cython: language_level=3, annotation_typing=False, auto_pickle=False, binding=False
"""The counts of a queue: what has happened to it since the start."""


class Counts:
    """What has happened to a queue since the start, or since `clear`; named as in `stats`."""

    __slots__ = (
        "canceled_transactions", "discarded", "duplicates", "expired_items", "total_flushes", "total_items",
        "transactions",
    )  # fmt: skip

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Set all counts to zero."""
        self.total_items = 0
        self.expired_items = 0
        # dropped because the queue was full, or after `max_attempts`
        self.discarded = 0
        # sets with an id that was remembered
        self.duplicates = 0
        # fetches with `/open`
        self.transactions = 0
        # reserved items that came back
        self.canceled_transactions = 0
        self.total_flushes = 0
