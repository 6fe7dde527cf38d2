"""The page in a real browser, Chromium without a window."""

import shutil
import socket

import pytest
from pages import showing
from running import running, until

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
pytest.importorskip("aiohttp", reason="the page needs aiohttp: pip install darner[web]")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="Debian's chromium and chromium-driver are missing"
)

EVIL = b"<script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"
QUEUES = 1000


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """A server of this module's own, always at the same port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with running(tmp_path_factory.mktemp("second") / "data", "--port", str(port)) as server:
        yield server


@pytest.fixture(scope="module")
def page(standing, second):
    urls = [f"127.0.0.1:{server.port}" for server in (standing, second)]
    with showing(*urls, "--allow-changes") as page:
        yield page


@pytest.fixture(scope="module")
def window():
    """A browser for all tests."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield window
    window.quit()


@pytest.fixture
def browser(window):
    yield window
    # what the Content-Security-Policy keeps from running is an error here, and so is one of the script's own
    assert [line for line in window.get_log("browser") if "the server responded" not in line["message"]] == []


def ask(browser, expression: str):
    return browser.execute_script(f"return {expression}")


def text(browser) -> str:
    return ask(browser, "document.body.innerText")


def press(browser, keys: str) -> None:
    for key in keys:
        browser.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": "keyDown", "text": key, "key": key})
        browser.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": "keyUp", "key": key})


def open_at(browser, page, path: str, *texts: str) -> None:
    """Open a page, and wait until it has these texts."""
    browser.get(page.url + path)
    until(lambda: all(each in text(browser) for each in texts))


def named(browser, name: str):
    return browser.find_element("link text", name)


def test_what_strangers_have_written_is_shown_and_never_run(browser, page, client):
    name = b"<script>document.title='pwned'<\\script>"
    client.set(name, EVIL)
    client.set(b"\"><img\\src=x\\onerror=document.title='pwned'>", EVIL)
    open_at(browser, page, "/?q=pwned", name.decode(), "onerror=document")
    named(browser, name.decode()).click()
    until(lambda: EVIL.decode() in text(browser))
    named(browser, "1").click()
    until(lambda: EVIL.decode() in text(browser))
    assert "pwned" not in browser.title.replace(name.decode(), "")
    open_at(browser, page, "/?q=%3C/input%3E%3Cscript%3Edocument.title=1%3C/script%3E", "No queue has this")
    assert browser.title.endswith("darner")


def test_figures_change_while_one_looks_and_the_focus_stays(browser, page, client, queue):
    client.set(queue, b"one")
    name = queue.decode()
    open_at(browser, page, f"/?q={name}", name)
    press(browser, "j")
    assert ask(browser, "document.activeElement.innerText") == name
    client.set(queue, b"two")
    until(lambda: ask(browser, "document.querySelector('#rows td[data-l=items]').innerText") == "2")
    assert ask(browser, "document.activeElement.innerText") == name
    client.ask(b"delete %b\r\n" % queue)
    until(lambda: "No queue has this" in text(browser))


def test_keys_filter_sort_open_and_lead_back(browser, page, client, queue):
    for end, count in (b"a", 1), (b"b", 2):
        for _ in range(count):
            client.set(queue + end, b"data")
    name = queue.decode()
    open_at(browser, page, "/", f"{name}a", f"{name}b")
    names = "[...document.querySelectorAll('#rows a')].map((a) => a.innerText)"
    press(browser, "/" + name)
    until(lambda: ask(browser, names) == [f"{name}b", f"{name}a"])
    browser.execute_script("document.activeElement.blur()")
    press(browser, "r")
    until(lambda: ask(browser, names) == [f"{name}a", f"{name}b"])
    press(browser, "s")
    until(lambda: "sort=in" in browser.current_url)
    press(browser, "jj")
    ask(browser, "document.activeElement.click()")
    until(lambda: "Next items" in text(browser))
    press(browser, "u")
    until(lambda: "filter" in text(browser))


def test_a_queue_is_flushed_behind_a_confirmation(browser, page, client, queue):
    client.set(queue, b"one")
    name = queue.decode()
    open_at(browser, page, f"/?q={name}", name)
    named(browser, name).click()
    until(lambda: "flush…" in text(browser))
    named(browser, "flush…").click()
    until(lambda: "To be sure" in text(browser))
    assert client.values(b"get " + queue + b"/peek")
    browser.find_element("name", "sure").send_keys(name)
    browser.find_element("tag name", "button").click()
    until(lambda: f"{name} was flushed" in text(browser))
    assert client.get(queue) is None


def test_a_server_that_goes_is_on_top_and_comes_back(browser, page, second):
    open_at(browser, page, "/", f"127.0.0.1:{second.port}")
    second.kill()
    until(lambda: "unreachable" in ask(browser, "document.querySelector('.troubles')?.innerText || ''"))
    second.start()
    until(lambda: "is not reached" not in text(browser), 20)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 820, 1440])
def test_each_page_fits_each_width_in_both_themes(browser, page, standing, client, width, theme):
    client.set(b"a-name-that-goes-on-and-on." * 9, b"x" * 3000)
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    at = f"server=127.0.0.1%3A{standing.port}&queue={'a-name-that-goes-on-and-on.' * 9}"
    for path in ("/", f"/queue?{at}", f"/item?{at}&id=1&as=hex", f"/act/delete?{at}"):
        browser.get(page.url + path)
        assert ask(browser, "document.documentElement.scrollWidth") <= width
        ground = ask(browser, "getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(21, 23, 26)") is (theme == "dark")
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_it_all_works_without_scripts(browser, page, client, queue):
    client.set(queue, b"body of it")
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(f"{page.url}/?q={queue.decode()}")
        until(lambda: browser.get(browser.current_url) or f">{queue.decode()}<" in browser.page_source)
        named(browser, queue.decode()).click()
        until(lambda: "body of it" in browser.page_source)
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.alone
def test_a_thousand_queues_stay_smooth(browser, page, second):
    wire = second.connect()
    for number in range(QUEUES):
        wire.set(b"service.%04d.jobs" % number, b"data")
    open_at(browser, page, "/?q=service.", "service.0999.jobs")
    assert ask(browser, "document.querySelectorAll('#rows tr').length") == QUEUES
    browser.execute_script(
        "window.longest = 0; new PerformanceObserver((list) => list.getEntries().forEach("
        "(task) => { longest = Math.max(longest, task.duration) })).observe({ type: 'longtask' })"
    )
    for number in range(0, QUEUES, 2):
        wire.set(b"service.%04d.jobs" % number, b"more")
    sample = "document.getElementById('live').dataset.sample"
    before = ask(browser, sample)
    count = "document.querySelectorAll('#rows td[data-l=items]')[0].innerText"
    until(lambda: ask(browser, sample) != before and ask(browser, count) == "2", 20)
    assert ask(browser, "longest") < 2000
    wire.close()
