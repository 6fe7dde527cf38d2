"""What one figure is, and which figures a store has."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from darner._records import Histogram

Subject = TypeVar("Subject")


@dataclass(frozen=True, slots=True)
class Figure(Generic[Subject]):
    """One figure of a subject, and how to read it, which must not take long."""

    # the name it has in `stats`, after Kestrel and memcached
    name: str
    read: Callable[[Subject], int | str]
    # its name as a metric, which of a counter ends in `_total`; "" if it is none
    metric: str = ""
    help: str = ""
    # metrics are in seconds and bytes, `stats` has milliseconds too
    scale: float = 1


def read(figures: Sequence[Figure[Subject]], subject: Subject) -> Iterator[tuple[str, int | str]]:
    """Give the name and the value of each of these figures."""
    for figure in figures:
        yield figure.name, figure.read(subject)


class StoreFigures(NamedTuple):
    """The figures that one kind of store has, beside those of every server."""

    # of each queue, and the label of each of its cursors with the items that it has still to read
    queue: Sequence[Figure[Any]]
    cursor_lags: Callable[[Any], list[tuple[bytes, int]]]
    # of the store, for metrics alone
    state: Sequence[Figure[Any]]
    # how long what in the store takes how long: the metric's name, its help, and how to read it
    durations: Sequence[tuple[str, str, Callable[[Any], Histogram]]]
