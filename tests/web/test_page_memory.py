"""The memory of the page, over a day of polling."""

import re
import sys
from pathlib import Path

import pytest
from pages import showing
from running import running

pytest.importorskip("aiohttp", reason="the page needs aiohttp: pip install darner[web]")

QUEUES = 20
# The console script, but that a poll is made as soon as somebody looks, and histories fill in some seconds.
HASTY = """
from darner.cli.main import main
from darner.web import history, watch

async def run(self):
    while True:
        self._is_looked_at.clear()
        await self.poll()
        await self._is_looked_at.wait()

history.STEP_S = 0.05
watch.Watch.run = run
main()
"""


def resident_kb(pid: int) -> int:
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])


def sample_in(text: str) -> int:
    """Return the number of the poll that a page shows."""
    return int(re.search(r'data-sample="(\d+)"', text)[1])


@pytest.mark.parametrize(
    ("polls", "most_kb"),
    [
        (600, 1000),
        # every 2 seconds for 24 hours
        pytest.param(43_200, 2000, marks=[pytest.mark.long, pytest.mark.timeout(7200)]),
    ],
)
def test_is_flat_once_the_lines_are_full(tmp_path, polls, most_kb):
    with (
        running(tmp_path / "data") as server,
        showing(f"127.0.0.1:{server.port}", command=(sys.executable, "-c", HASTY)) as page,
    ):
        client = server.connect()
        seen, kb = 0, {}
        while seen < polls:
            queue = b"queue%d" % (seen % QUEUES)
            client.set(queue, b"data" * (seen % 7))
            client.get(b"queue%d" % (seen * 7 % QUEUES))
            if text := page.get(f"/?live={seen}").text:
                seen = sample_in(text)
            page.get(f"/queue?server=127.0.0.1%3A{server.port}&queue={queue.decode()}&live=0")
            kb[seen] = resident_kb(page.process.pid)
        client.close()
        # by then 15 minutes of steps have passed
        full = next(at for at in kb if at >= polls // 3)
        print(f"{polls} polls: {kb[full]} kB resident after {full}, {kb[seen]} kB after {seen}")
        assert kb[seen] - kb[full] < most_kb
