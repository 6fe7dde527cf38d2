"""Sparklines: a series of figures as the path of an SVG."""

from collections.abc import Sequence

HEIGHT = 20


def paths(*lines: Sequence[float]) -> list[str]:
    """Return the path of each line, all in one scale from 0 up: a unit wide a point, HEIGHT high.

    A point below 0 is a gap. What lies on a level is one stroke, so a quiet queue's path is short.
    """
    top = max((max(line) for line in lines), default=0)
    # none is at the very edge, where half of the stroke would be cut off
    scale = (HEIGHT - 2) / top if top > 0 else 0
    return [
        _path([HEIGHT - 1 - int(scale * point) if point >= 0 else -1 for point in line]) for line in lines
    ]


def _path(heights: Sequence[int]) -> str:
    """Return the path through these heights; -1 is a gap. Steps are relative, which is shortest."""
    path = []
    before, height = -1, heights[0]
    drawn_at, drawn = 0, 0
    for at, after in enumerate([*heights[1:], -1]):
        if height >= 0:
            if before < 0:
                # a lone point is a stroke of its own
                path.append(f"M{at} {height}l" if after >= 0 else f"M{at} {height}h1")
                drawn_at, drawn = at, height
            elif before != height or height != after:
                path.append(f"{at - drawn_at} {height - drawn} ")
                drawn_at, drawn = at, height
        before, height = height, after
    return "".join(path).replace(" -", "-").replace(" M", "M").rstrip()
