"""The memory of the page, over a day of polling."""

import http.client
import re
import sys
from pathlib import Path

import pytest
from pages import showing
from running import WAIT_S, running

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


def ask(browser: http.client.HTTPConnection, path: str) -> str:
    browser.request("GET", path)
    return browser.getresponse().read().decode()


@pytest.mark.parametrize(
    ("polls", "most_kb"),
    [
        (1500, 500),
        # every 2 seconds for 24 hours
        pytest.param(43_200, 500, marks=[pytest.mark.long, pytest.mark.timeout(7200)]),
    ],
)
def test_is_flat_once_the_lines_are_full(tmp_path, polls, most_kb):
    with (
        running(tmp_path / "data") as server,
        showing(f"127.0.0.1:{server.port}", command=(sys.executable, "-c", HASTY)) as page,
    ):
        client = server.connect()
        browser = http.client.HTTPConnection("127.0.0.1", page.port, timeout=WAIT_S)
        at = f"/queue?server=127.0.0.1%3A{server.port}&live=0&queue="
        seen, looks, kb = 0, 0, {}
        while seen < polls:
            queue = f"queue{looks % QUEUES}"
            client.set(queue.encode(), b"data" * (looks % 7))
            client.get(b"queue%d" % (looks * 7 % QUEUES))
            if looks % 10 == 0:
                ask(browser, at + queue)
                page.get("/")  # a browser that comes and goes
            if text := ask(browser, f"/?live={seen}"):
                seen = int(re.search(r'data-sample="(\d+)"', text)[1])
                kb[seen] = resident_kb(page.process.pid)
            looks += 1
        browser.close()
        client.close()
        # by then the lines are full, and the allocator has got what it needs
        full = next(at for at in kb if at >= polls // 2)
        print(f"{polls} polls: {kb[full]} kB resident after {full}, {kb[seen]} kB after {seen}")
        assert kb[seen] - kb[full] < most_kb
