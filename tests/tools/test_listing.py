"""Queues as rows: which of them, in which order, and how figures are written."""

import pytest

from darner.client.stats import QueueStats
from darner.tools import listing
from darner.tools.overview import Overview, QueueView


def overview(server: str, *queues: QueueStats) -> Overview:
    return Overview(server, queues={queue.name: QueueView(queue) for queue in queues})


A = overview(
    "a:1",
    QueueStats(name="mail", items=3, cursor_lags={"x": 1, "y": 9}),
    QueueStats(name="café", items=5),
    QueueStats(name="mail.errors", items=3),
)
B = overview("b:1", QueueStats(name="mail", items=7))


def names(rows: list[listing.Row]) -> list[str]:
    return [f"{row.server[0]} {row.name}" for row in rows]


class TestRows:
    @pytest.mark.parametrize(
        ("pattern", "found"),
        [
            ("*", ["a mail", "a caf%C3%A9", "a mail.errors", "b mail"]),
            ("mail", ["a mail", "b mail"]),
            ("mail*", ["a mail", "a mail.errors", "b mail"]),
            ("caf%C3*", ["a caf%C3%A9"]),
            ("caf?", ["a caf%C3%A9"]),
            ("MAIL", []),
        ],
    )
    def test_are_those_that_match_as_written_or_as_shown(self, pattern, found):
        assert names(listing.rows([A, B], pattern)) == found

    @pytest.mark.parametrize(
        ("column", "is_reversed", "found"),
        [
            ("name", False, ["a caf%C3%A9", "a mail", "b mail", "a mail.errors"]),
            ("name", True, ["a mail.errors", "b mail", "a mail", "a caf%C3%A9"]),
            ("items", False, ["b mail", "a caf%C3%A9", "a mail", "a mail.errors"]),
            ("items", True, ["a mail", "a mail.errors", "a caf%C3%A9", "b mail"]),
            ("lag", False, ["a mail", "a caf%C3%A9", "b mail", "a mail.errors"]),
        ],
    )
    def test_are_sorted_by_any_column_the_most_first(self, column, is_reversed, found):
        assert names(listing.sort(listing.rows([A, B]), column, is_reversed=is_reversed)) == found

    def test_every_figure_fits_its_column(self):
        huge = QueueStats(
            name="q", items=99_999_999, bytes=999 << 40, head_age=99 * 86400 - 1, waiters=99_999
        )
        row = listing.Row("a:1", QueueView(huge, rate_in=1e8, rate_out=0.04))
        for column in listing.COLUMNS.values():
            assert len(column.text(row)) <= column.width
            column.read(row)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1000, "1.0K"), (1 << 20, "1.0M"), (15 << 30, "15G"), (1 << 60, "1024P")],
)
def test_sizes_are_short(count, text):
    assert listing.size(count) == text


@pytest.mark.parametrize(
    ("per_second", "text"),
    [(None, "-"), (0, "0"), (0.26, "0.3"), (9.96, "10"), (12345, "12345"), (2e6, "2.0M")],
)
def test_rates_are_short(per_second, text):
    assert listing.rate(per_second) == text
