"""A queue with priorities is several: one for each, of which the most urgent that has an item goes first."""


def level(queue: str, priority: float, highest: int) -> str:
    """Return the queue for items of a priority: `queue` itself for 0, up to `highest`, the most urgent.

    What lies outside counts as the nearest.
    """
    number = max(0, min(int(priority), highest))
    return f"{queue}#{number}" if number else queue


def levels(queue: str, highest: int) -> list[str]:
    """Return the queues for all priorities, the most urgent first."""
    return [level(queue, number, highest) for number in range(highest, -1, -1)]
