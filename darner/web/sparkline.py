"""Sparklines: a series of figures as the path of an SVG."""

from collections.abc import Sequence

HEIGHT = 20


def paths(*lines: Sequence[float]) -> list[str]:
    """Return the path of each line, all in one scale from 0 up: a unit wide a point, HEIGHT high.

    A NaN is a gap. What lies on a level is one stroke, so a quiet queue's path is short.
    """
    top = max((point for line in lines for point in line if point == point), default=0) or 1
    return [_path(line, top) for line in lines]


def _path(line: Sequence[float], top: float) -> str:
    # none is at the very edge, where half of the stroke would be cut off
    heights = [round(HEIGHT - 1 - (HEIGHT - 2) * point / top) if point == point else None for point in line]
    path = []
    before = None
    for at, height in enumerate(heights):
        after = heights[at + 1] if at + 1 < len(heights) else None
        if height is not None and before is None:
            # a lone point is a stroke of its own
            path.append(f"M{at} {height}{'' if after is not None else 'h1'}")
        elif height is not None and not before == height == after:
            path.append(f"L{at} {height}")
        before = height
    return "".join(path)
