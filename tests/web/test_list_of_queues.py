"""The size of the list of all queues, which a browser loads again every two seconds."""

import random
import zlib

import pytest

pytest.importorskip("aiohttp", reason="the page needs aiohttp: pip install darner[web]")

from darner.client.stats import QueueStats
from darner.tools.overview import Overview, QueueView
from darner.web import listing
from darner.web.history import POINTS, SERIES, STEP_S, Histories
from darner.web.site import Site

SERVER = "127.0.0.1:22133"


@pytest.mark.parametrize(
    ("is_busy", "most_kib", "most_compressed_kib"), [(False, 600, 16), (True, 1600, 190)]
)
def test_a_thousand_queues_are_not_too_much(is_busy, most_kib, most_compressed_kib):
    chance = random.Random(1)

    def figure() -> int:
        return chance.randrange(1000) if is_busy else 0

    histories, views = Histories(), {}
    for number in range(1000):
        name = f"service.{number:04}.jobs"
        stats = QueueStats(
            name=name, items=figure(), head_age=figure(), waiters=figure(), open_transactions=figure()
        )
        views[name] = QueueView(stats, figure(), figure())
        for step in range(POINTS):
            histories.begin(SERVER, name).add(step * STEP_S, [figure() for _ in SERIES])
    overview = Overview(SERVER, queues=views)
    by = listing.column_named("items")
    found = listing.listing([overview], histories, POINTS * STEP_S - 1, part="", by=by, goes_down=True)
    page = Site({}).render(
        "queues.html", sample="1", servers=[overview], troubles=[], columns=listing.COLUMNS, rows=found.rows,
        more=found.more, sort=by.name, down=True, q="",
    ).body  # fmt: skip
    kib, compressed_kib = len(page) / 1024, len(zlib.compress(page)) / 1024
    print(f"{kib:.0f} KiB, {compressed_kib:.0f} KiB compressed")
    assert page.count(b"<tr ") == 1000
    assert kib < most_kib
    assert compressed_kib < most_compressed_kib
