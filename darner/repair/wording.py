"""Counts and ids in the sentences of a report."""

# How many entries of a list are told.
MAX_TOLD = 10


def counted(number: int, noun: str) -> str:
    """Return `1 item`, `2 items`, ..."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def are(number: int) -> str:
    """Return the verb behind `counted`."""
    return "is" if number == 1 else "are"


def listed(ranges: list[tuple[int, int]]) -> str:
    """Return ranges of ids, each from its first to its last, as text."""
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in ranges[:MAX_TOLD]]
    return " ".join([*texts, "..."] if len(ranges) > MAX_TOLD else texts) or "not known"


def changes_are(first: int, last: int) -> str:
    """Return `change 3 is`, `changes 3 to 5 are`, ..."""
    return f"change {first} is" if first == last else f"changes {first} to {last} are"
