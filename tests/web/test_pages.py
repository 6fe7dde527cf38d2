"""The page over HTTP: what it shows, what it refuses, and what it changes."""

import base64
import contextlib
import http.client
import re
import socket
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from pages import showing
from running import WAIT_S, configured, run_darner, until

WEB_PAGE = Path(__file__).parents[2] / "docs" / "web.md"
PASSWORD = "correct horse battery"


def asked(standing, queue: bytes, **more: object) -> str:
    fields = {"server": f"127.0.0.1:{standing.port}", "queue": queue.decode(), **more}
    return "&".join(f"{name}={quote(str(value), safe='')}" for name, value in fields.items())


def shows(page, path: str, *texts: str) -> None:
    """Wait until the page has these texts, which takes a poll at most."""
    until(lambda: all(text in page.get(path).text for text in texts))


def test_queues_are_listed_sorted_and_filtered(page, client, queue):
    for number, count in enumerate((1, 3, 2)):
        for _ in range(count):
            client.set(b"%bpart%d" % (queue, number), b"data")
    name = queue.decode()
    shows(page, f"/?q={name}PART", f"{name}part0", f"{name}part1", f"{name}part2")
    text = page.get(f"/?q={name}part&sort=items&down=1").text
    assert text.index(f"{name}part1<") < text.index(f"{name}part2<") < text.index(f"{name}part0<")
    assert "<path" in text
    assert f"{name}part0<" not in page.get(f"/?q={name}part1").text


def test_each_figure_has_its_line_and_none_where_nothing_happened(page, standing, client, queue):
    client.set(queue, b"one")
    client.get(queue + b"/open")
    with contextlib.closing(standing.connect()) as reader:
        reader.send(b"get %b.empty/t=60000\r\n" % queue)
        address = f"/?q={queue.decode()}"
        shows(
            page, address, 'data-l="reserved" class="narrow">1<svg', 'data-l="waiters" class="narrow">1<svg'
        )
        client.set(queue, b"two")
        # the rate of a queue is known from its second poll on
        shows(page, address, '<path class="i"', '<path class="o"')
        text = page.get(address).text
    assert 'data-l="items" class="wide">1<svg' in text
    assert re.search(r'data-l="head waits" class="narrow">\w[^<]*<svg', text)
    # each queue has reserved items or waiters, and not both
    assert text.count('data-l="reserved" class="narrow zero">0</td>') == 1
    assert text.count('data-l="waiters" class="narrow zero">0</td>') == 1


def test_an_answer_that_has_nothing_new_is_empty(page):
    until(lambda: page.get("/").text)
    sample = page.get("/").text.partition('data-sample="')[2].partition('"')[0]
    assert page.get(f"/?live={sample}").status in (200, 204)
    assert page.get("/?live=0").status == 200


def test_a_queue_shows_its_items_by_page_its_settings_cursors_and_children(page, standing, client, queue):
    client.get(queue + b"+child")
    for number in range(25):
        client.set(queue, b"item number %d" % number, flags=7)
    client.get(queue + b"/cursor=billing")
    path = f"/queue?{asked(standing, queue)}"
    child = f"{queue.decode()}+child"
    shows(page, path, "cursor billing", "24 behind", child, "dedup_window", "item number 0<")
    first = page.get(path).text
    assert "item number 20" not in first
    link = first.partition('id="next" href="')[2].partition('"')[0].replace("&amp;", "&")
    assert "item number 24" in page.get(link).text


def test_an_item_comes_as_a_whole_and_stays(page, standing, client, queue):
    client.set(queue, b'{"a": "<b>"}')
    path = f"/item?{asked(standing, queue, id=1)}"
    assert "&#34;a&#34;: &#34;&lt;b&gt;&#34;" in page.get(path).text
    assert "7b 22 61 22" in page.get(f"{path}&as=hex").text
    assert client.get(queue) == b'{"a": "<b>"}'
    assert "does not wait any more" in page.get(path).text


def test_a_large_item_is_not_fetched(page, standing, client, queue):
    client.set(queue, b"x" * 500_000)
    sent = standing.stat("bytes_written")
    assert "(large)" in page.get(f"/queue?{asked(standing, queue)}").text
    assert "Larger than" in page.get(f"/item?{asked(standing, queue, id=1)}").text
    # polls of all queues are in it as well
    assert standing.stat("bytes_written") - sent < 400_000


def test_a_change_needs_the_form_and_leaves_a_line_in_the_log(page, standing, client, queue):
    client.set(queue, b"one")
    act = asked(standing, queue)
    token = page.token(f"/act/put?{act}")
    done = page.post(f"/act/put?{act}", {"token": token, "text": "two\r\nlines"}, Origin=page.url)
    assert done.status == 303
    line = page.wait_for_log("change by the page")
    assert f"act=put queue={queue.decode()}" in line
    shown = re.search(r"^level=info event=.*$", WEB_PAGE.read_text(), re.MULTILINE)[0]
    assert re.findall(r"(\w+)=", line) == ["timestamp", *re.findall(r"(\w+)=", shown)]
    assert "peer=127.0.0.1" in line
    assert client.take_all(queue) == [b"one", b"two\nlines"]

    client.set(queue, b"three")
    wrong = page.post(f"/act/flush?{act}", {"token": token, "sure": "another"})
    assert wrong.status == 409
    assert client.values(b"get " + queue + b"/peek")
    assert page.post(f"/act/flush?{act}", {"token": token, "sure": queue.decode()}).status == 303
    assert not client.values(b"get " + queue + b"/peek")
    assert page.post(f"/act/delete?{act}", {"token": token, "sure": queue.decode()}).status == 303
    assert f"queue_{queue.decode()}_items" not in client.stats()


def test_dead_letters_are_moved_back_once_the_dry_run_is_confirmed(page, standing, client, queue):
    for number in range(3):
        client.set(queue + b"dead", b"letter %d" % number, flags=number)
    act = asked(standing, queue + b"dead")
    fields = {"token": page.token(f"/act/move?{act}"), "to": queue.decode(), "most": "2"}
    for wrong in (
        {"to": f"{queue.decode()}dead"}, {"to": "a b"}, {"most": "0"}, {"most": "x"},
        {"most": "0000000001000001"}, {"most": "9" * 5000},
    ):  # fmt: skip
        assert page.post(f"/act/move?{act}", fields | wrong).status == 409
    shown = page.post(f"/act/move?{act}", fields)
    assert shown.status == 200
    assert "<b>2 items</b> (16 B) would move now" in shown.text
    assert f"<dd>{queue.decode()}dead</dd>" in shown.text
    assert f"<dd>{queue.decode()}</dd>" in shown.text
    assert not client.values(b"get " + queue + b"/peek")
    done = page.post(f"/act/move?{act}", fields | {"confirmed": "yes"})
    assert done.status == 303
    assert f"2 items went from {queue.decode()}dead" in page.get(done.headers["Location"]).text
    assert "items=2" in page.wait_for_log("move by the page ends")
    assert client.take_all(queue) == [b"letter 0", b"letter 1"]
    assert client.take_all(queue + b"dead") == [b"letter 2"]
    assert page.post(f"/act/move?{act}", fields).status == 409


def test_a_dry_run_warns_of_what_may_go_wrong(tmp_path):
    settings = "[queues.target]\ndedup_window = 0\ndurable = false\n"
    with (
        configured(tmp_path, settings) as server,
        showing(f"127.0.0.1:{server.port}", "--allow-changes") as page,
    ):
        client = server.connect()
        client.set(b"source", b"data")
        act = f"/act/move?{asked(server, b'source')}"
        shown = page.post(act, {"token": page.token(act), "to": "target", "most": "9"}).text
        assert "does not remember what was set (dedup_window = 0)" in shown
        assert "is in memory only (durable = false)" in shown
        assert client.get(b"source") == b"data"
        client.close()


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/x-www-form-urlencoded; charset=nonsense"},
    ],
)
def test_a_form_from_elsewhere_changes_nothing(page, standing, client, queue, headers):
    client.set(queue, b"one")
    act = asked(standing, queue)
    fields = {"token": page.token(f"/act/flush?{act}"), "sure": queue.decode()}
    assert page.post(f"/act/flush?{act}", fields, **headers).status in (400, 403, 415)
    assert client.get(queue) == b"one"


def test_a_form_without_its_token_changes_nothing(page, standing, client, queue):
    client.set(queue, b"one")
    for token in ({}, {"token": "0" * 64}, {"token": "ö"}):
        fields = {"sure": queue.decode(), **token}
        assert page.post(f"/act/flush?{asked(standing, queue)}", fields).status == 403
    assert client.get(queue) == b"one"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.:1", "[", ""])
def test_a_name_that_was_made_to_lead_here_is_refused(page, host):
    assert page.get("/", Host=host).status in (400, 403)


def test_every_answer_lets_a_browser_run_only_what_is_of_the_page(page):
    for path in ("/", "/queue", "/static/page.js", "/nothing", "/act/flush"):
        headers = page.get(path).headers
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
    assert page.get("/static/../pages.py").status == 404
    assert page.get("/static/%2e%2e/pages.py").status in (403, 404)


@pytest.mark.parametrize("query", ["server=nobody&queue=a", "queue=a", "server={}&queue=a%20b", "server={}"])
def test_an_address_that_names_nothing_is_not_found(page, standing, query):
    assert page.get("/queue?" + query.format(f"127.0.0.1:{standing.port}")).status == 404


def test_a_page_that_only_shows_changes_nothing_and_asks_for_its_login(standing, client, queue):
    client.set(queue, b"one")
    act = f"/act/flush?{asked(standing, queue)}"
    with showing(f"127.0.0.1:{standing.port}", DARNER_WEB_LOGIN=f"ada:{PASSWORD}") as page:
        login = base64.b64encode(f"ada:{PASSWORD}".encode()).decode()
        right = {"Authorization": f"Basic {login}"}
        assert page.get("/", **right).status == 200
        assert page.get(act, **right).status == 403
        assert page.post(act, {"sure": queue.decode()}, **right).status == 403
        for wrong in ("", "Basic", "Basic !", f"Bearer {login}", "Basic YWRhOng="):
            answer = page.get("/", **({"Authorization": wrong} if wrong else {}))
            assert answer.status == 401
            assert queue.decode() not in answer.text
        statuses = [page.get("/", Authorization="Basic eDp5").status for _ in range(10)]
        assert statuses[-1] == 429
        assert PASSWORD not in page.log
    assert client.get(queue) == b"one"


def test_a_page_is_called_by_its_names_in_either_case(standing):
    with showing(f"127.0.0.1:{standing.port}", "--name", "Queues.Example.org") as page:
        assert page.get("/", Host="queues.example.org").status == 200
        assert page.get("/", Host="QUEUES.example.org:443").status == 200
        assert page.get("/", Host="example.org").status == 403


def test_silence_and_many_connections_keep_nobody_out(page):
    silent = [socket.create_connection(("127.0.0.1", page.port)) for _ in range(100)]
    assert page.get("/").status == 200
    for each in silent:
        each.close()


def test_a_connection_that_asks_for_nothing_is_closed(standing):
    hasty = "from darner.cli.main import main; from darner.web import server; server.REQUEST_S = 0; main()"
    with showing(f"127.0.0.1:{standing.port}", command=(sys.executable, "-c", hasty)) as page:
        asking = http.client.HTTPConnection("127.0.0.1", page.port, timeout=WAIT_S)
        for _ in range(2):
            asking.request("GET", "/")
            assert asking.getresponse().read()
            with socket.create_connection(("127.0.0.1", page.port), timeout=WAIT_S) as silent:
                assert silent.recv(1) == b""
        asking.close()


def test_others_may_not_look_without_a_login(tmp_path):
    done = run_darner("web", "--listen", "0.0.0.0:0")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "--login" in done.stderr
    logins = tmp_path / "logins"
    logins.write_text("ada:short\n")
    logins.chmod(0o600)
    assert "12 characters" in run_darner("web", "--login", logins).stderr
    logins.chmod(0o644)
    assert "others may read it" in run_darner("web", "--login", logins).stderr


def test_without_its_extra_one_line_says_what_to_install(tmp_path):
    (tmp_path / "aiohttp.py").write_text("raise ImportError")
    done = run_darner("web", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (
        1, "darner: the page needs aiohttp and jinja2: pip install 'darner[web]'\n",
    )  # fmt: skip


@pytest.mark.parametrize("words", [["http://a"], ["--listen", "nowhere"], ["a", "a"]])
def test_a_wrong_command_line_is_one_clear_line(words):
    done = run_darner("web", *words)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
