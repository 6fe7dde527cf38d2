"""How long the pause is before something that failed is tried again."""

from collections.abc import Callable

# Doubling further makes no difference to any pause, but would overflow.
MAX_DOUBLINGS = 62


def pause_s(failures: int, first_s: float, longest_s: float, random: Callable[[], float]) -> float:
    """Return the seconds to pause after so many failures before this one.

    The pause doubles with each failure, from `first_s` up to `longest_s`. Of that, a random share is left
    out, up to a half, so that what failed together is not tried again together. `random` gives numbers from
    0 up to 1.
    """
    whole_s = min(longest_s, first_s * (1 << min(failures, MAX_DOUBLINGS)))
    return whole_s * (1 - random() / 2)
