"""The benches: their options, reports and plots. Their figures are not tested."""

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from matplotlib.image import imread

import ledger
from darner.journal.leveldb import DB
from load import memtier, raw, servers
from load.options import numbers
from suite import markdown, plot

BENCH = Path(__file__).parents[2] / "bench"

# The keys of a file written by memtier_benchmark 2.2.
CONFIGURATION = """
server port uri unix_socket address_family protocol out_file tls cert key cacert tls_skip_verify sni
client_stats run_count debug requests rate_limit clients threads test_time ratio pipeline data_size
data_offset random_data data_size_range data_size_list data_size_pattern expiry_range data_import
data_verify verify_only generate_keys key_prefix key_minimum key_maximum key_pattern key_stddev
key_median key_zipf_exp reconnect_interval connection_timeout thread_conn_start_min_jitter_micros
thread_conn_start_max_jitter_micros multi_key_get authenticate select-db no-expiry wait-ratio
num-slaves wait-timeout print-all-runs
"""
WITH_SPACE = {"unix_socket": "unix socket", "address_family": "address family"}
RUN_INFORMATION = ["Threads", "Connections per thread", "Requests per client", "Format version"]
RUNTIME = ["Start time", "Finish time", "Total duration", "Time unit", "Interrupted"]
ALL_STATS = ["Runtime", "Sets", "Gets", "Waits", "Totals", "SET", "GET", "WAIT"]
VERB = [
    "Count",
    "Ops/sec",
    "Hits/sec",
    "Misses/sec",
    "Connection Errors/sec",
    "Connection Errors",
    "Latency",
    "Average Latency",
    "Accumulated Latency",
    "Min Latency",
    "Max Latency",
    "KB/sec",
    "KB/sec RX/TX",
    "KB/sec RX",
    "KB/sec TX",
    "Time-Serie",
    "Percentile Latencies",
]
PERCENTILES = ["p50.00", "p99.00", "p99.90"]
SECOND = [
    "Bytes RX",
    "Bytes TX",
    "Count",
    "Average Latency",
    "Accumulated Latency",
    "Min Latency",
    "Max Latency",
    *PERCENTILES,
]


def bench(script: str, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCH / script), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_server_is_named_with_host_port_and_pid():
    assert servers.named_server("darner=127.0.0.1:22133") == servers.Server("darner", "127.0.0.1", 22133)
    assert servers.named_server("d=localhost:1:1") == servers.Server("d", "127.0.0.1", 1, 1)
    assert servers.named_server("six=[::1]:22133").host == "::1"


@pytest.mark.parametrize(
    "text", ["127.0.0.1:22133", "a=127.0.0.1", "a=127.0.0.1:x", "a=127.0.0.1:99999", "a=::1:5"]
)
def test_a_server_named_badly_is_refused(text):
    with pytest.raises(click.BadParameter):
        servers.named_server(text)


@pytest.mark.parametrize("host", ["10.0.0.1", "0.0.0.0", "example.com", "::", ""])
def test_only_loopback_addresses_are_loaded(host):
    with pytest.raises(click.BadParameter, match="not a loopback address"):
        servers.loopback(host)


def test_every_command_line_refuses_other_hosts():
    for command in (memtier.main, raw.main):
        result = CliRunner().invoke(command, ["-s", "10.0.0.1"])
        assert result.exit_code == 2
        assert "not a loopback address" in result.output
    for script in ("flood", "fairness", "packing", "mem_rss", "sync", "many_queues", "stall"):
        result = CliRunner().invoke(__import__(script).main, ["far=10.0.0.1:22133"])
        assert result.exit_code == 2
        assert "not a loopback address" in result.output


def test_numbers_and_ratios_are_read():
    assert numbers(click.IntRange(0, 10))("1,4 10") == [1, 4, 10]
    with pytest.raises(click.BadParameter):
        numbers(click.IntRange(0, 10))("11")
    assert raw.ratio("1:10") == (1, 10)
    for text in ("1", "0:0", "a:b"):
        with pytest.raises(click.BadParameter):
            raw.ratio(text)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cluster-mode"], "--cluster-mode is not supported here"),
        (["--command", "set __key__ 1"], "--command is not supported here"),
        (["-a", "secret"], "--authenticate is not supported here"),
        (["--no-such-thing"], "No such option"),
        (["-P", "redis"], "not supported here"),
        (["--ratio", "x"], "not a ratio"),
        (["-n", "0"], "greater than zero"),
        (["-n", "10", "--test-time", "1"], "mutually exclusive"),
        (["--key-pattern", "Z:Z"], "not supported here"),
        (["--key-pattern", "P:R"], "both SET and GET"),
        (["--key-minimum", "5"], "must not be smaller"),
        (["--print-percentiles", "101"], "quantiles"),
    ],
)
def test_what_memtier_knows_and_this_does_not_is_refused_clearly(options, said):
    result = CliRunner().invoke(memtier.main, options)
    assert result.exit_code == 2
    assert said in result.output


def test_memtier_writes_memtiers_tables_and_json(server, tmp_path):
    file = tmp_path / "memtier.json"
    options = ["-p", str(server.port), "-c", "2", "-t", "2", "-n", "50", "-d", "100", "--key-maximum", "3"]
    done = bench("load/memtier.py", *options, "--pipeline", "5", "--json-out-file", str(file))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == [
        "2         Threads",
        "2         Connections per thread",
        "50        Requests per client",
    ]
    assert lines[5] == "ALL STATS"
    assert " ".join(lines[7].split()) == (
        "Type Ops/sec Hits/sec Misses/sec Avg. Latency p50 Latency p99 Latency p99.9 Latency KB/sec"
    )
    assert [line.split()[0] for line in lines[9:13]] == ["Sets", "Gets", "Waits", "Totals"]
    assert "Request Latency Distribution" in lines
    found = json.loads(file.read_text())
    assert list(found) == ["configuration", "run information", "ALL STATS"]
    assert list(found["configuration"]) == [WITH_SPACE.get(name, name) for name in CONFIGURATION.split()]
    assert list(found["run information"]) == RUN_INFORMATION
    stats = found["ALL STATS"]
    assert list(stats) == ALL_STATS
    assert list(stats["Runtime"]) == RUNTIME
    for verb in ("Sets", "Gets", "Waits", "Totals"):
        assert list(stats[verb]) == VERB
        assert list(stats[verb]["Percentile Latencies"]) == [*PERCENTILES, "Histogram log format"]
    assert list(stats["Sets"]["Time-Serie"]["0"]) == SECOND
    assert list(stats["Waits"]["Time-Serie"]["0"]) == ["Bytes RX", "Bytes TX", "Count"]
    assert {verb: stats[verb]["Count"] for verb in ("Sets", "Gets", "Waits", "Totals")} == {
        "Sets": 100,
        "Gets": 100,
        "Waits": 0,
        "Totals": 200,
    }
    assert list(stats["SET"][0]) == ["<=msec", "percent"]
    assert server.stat("cmd_set") == 100
    assert server.stat("cmd_get") == 100


def test_memtier_without_a_pipeline_counts_hits_and_misses(server):
    done = bench(
        "load/memtier.py", "-p", str(server.port), "-c", "1", "-t", "1", "-n", "30", "--ratio", "1:2"
    )
    assert done.returncode == 0, done.stderr
    gets = next(line.split() for line in done.stdout.splitlines() if line.startswith("Gets"))
    assert float(gets[2]) == pytest.approx(float(gets[3]), rel=0.01)
    assert server.stat("get_hits") == 10
    assert server.stat("get_misses") == 10


def test_flood_measures_reports_and_draws(server, tmp_path):
    file, png = tmp_path / "flood.json", tmp_path / "flood.png"
    name = f"one=127.0.0.1:{server.port}:{server.process.pid}"
    other = f"two=127.0.0.1:{server.port}"
    options = [
        "-c",
        "1,5",
        "-n",
        "100",
        "--rounds",
        "2",
        "--warmup",
        "20",
        "--backlog",
        "10",
        "--base",
        "two",
    ]
    done = bench("flood.py", name, other, *options, "--json", str(file), "--plot", str(png))
    assert done.returncode == 0, done.stderr
    assert "requests/s" in done.stdout
    assert "two was given without a pid" in done.stdout
    found = json.loads(file.read_text())
    assert len(found["rows"]) == 2 * 2 * 2
    assert [row["server"] for row in found["rows"]] == [
        "one",
        "two",
        "two",
        "one",
        "two",
        "one",
        "one",
        "two",
    ]
    assert all(one["rounds"] == 2 and one["figures"]["misses"] == 0 for one in found["medians"])
    assert all(one["ratios"]["rps"] == 1 for one in found["medians"] if one["server"] == "two")
    assert "server_cpu_us" in found["medians"][0]["figures"]
    assert png.read_bytes().startswith(b"\x89PNG")
    assert server.stat("curr_items") == 0


def medians_of(script: str, server, directory, *options: str) -> tuple[str, list[dict]]:
    """Run one round of a bench on a server; return what it printed, and its medians. It leaves nothing."""
    file, png = directory / "found.json", directory / "found.png"
    name = f"darner=127.0.0.1:{server.port}:{server.process.pid}"
    files = ["--json", str(file), "--plot", str(png)]
    done = bench(script, name, "--rounds", "1", "--warmup", "0", *options, *files)
    assert done.returncode == 0, done.stderr
    assert png.read_bytes().startswith(b"\x89PNG")
    assert server.stat("curr_items") == 0
    return done.stdout, json.loads(file.read_text())["medians"]


def test_growth_measures_each_step_and_says_how_much_dearer_the_dearest_is(server, tmp_path):
    said, medians = medians_of("growth.py", server, tmp_path, "-n", "3000", "--most", "16")
    assert "connections, dearest / cheapest: darner" in said
    steps = [(one["cell"]["grows"], one["cell"]["to"]) for one in medians]
    assert steps == [
        *[("connections", 1), ("connections", 10)],
        *[("pipeline", 1), ("pipeline", 4), ("pipeline", 16)],
        *[("queues", 1), ("queues", 10)],
        ("size", 16),
        *[("cursors", 1), ("cursors", 10)],
        *[("children", 1), ("children", 10)],
        ("depth", 0),
    ]
    assert all("rps" in one["figures"] and not one["errors"] for one in medians)


def test_kinds_of_work_are_compared_to_the_plainest(server, tmp_path):
    _, medians = medians_of("kinds.py", server, tmp_path, "-c", "2", "-n", "100")
    figures = {one["cell"]["work"]: one["figures"] for one in medians}
    assert len(figures) == 7
    assert figures["get"]["share"] == figures["flood"]["share"] == 1
    assert all(one["share"] > 0 for one in figures.values())


def test_drain_starts_cold_and_gets_every_item(tmp_path):
    file, png = tmp_path / "drain.json", tmp_path / "drain.png"
    options = ["-n", "500,1000", "--rounds", "1", "--data-in", str(tmp_path)]
    done = bench("single/drain.py", *options, "--json", str(file), "--plot", str(png))
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert [row["cell"] for row in found["rows"]] == [{"items": 500}, {"items": 1000}]
    for row in found["rows"]:
        assert row["error"] == ""
        assert row["figures"]["hits"] >= row["cell"]["items"] - 1
        assert row["figures"]["listening_s"] > 0
    assert png.read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("darner-bench-*"))


def test_recovery_finds_all_items_of_many_queues(tmp_path):
    done = bench("single/recovery.py", "-n", "300", "--queues", "3", "--data-in", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["filled", "listening", "first"]
    assert "in 3 queues" in done.stdout
    assert not list(tmp_path.glob("darner-bench-*"))


def test_duplicates_finds_one_item_for_each_id(tmp_path):
    done = bench("single/duplicates.py", "-n", "300", "--settle", "0", "--data-in", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [line.split("sets/s")[0].rsplit(None, 1)[0] for line in done.stdout.splitlines()] == [
        "without an id", "with a new id", "with the same id again", "with another new id",
        "again after a kill -9", "with a new id after it", "without an id",
    ]  # fmt: skip
    assert not list(tmp_path.glob("darner-bench-*"))


def test_leveldb_bindings_compares_those_that_are_there(tmp_path):
    name = DB.__module__.partition(".")[0]
    options = ["-n", "1000", "--rounds", "2", "--data-in", str(tmp_path)]
    done = bench("single/leveldb_bindings.py", name, "no_such_binding", name, *options)
    assert done.returncode == 0, done.stderr
    left_out, _, header, *rows = done.stdout.splitlines()
    assert left_out == "no_such_binding is not installed: left out"
    assert header.split() == [name]
    assert len(rows) == 10
    assert all(row.endswith("( 1.00)") and float(row[34:46]) > 0 for row in rows)
    assert not list(tmp_path.iterdir())


def test_leveldb_bindings_needs_one(tmp_path):
    done = bench("single/leveldb_bindings.py", "no_such_binding", "--data-in", str(tmp_path))
    assert (done.returncode, done.stderr) == (1, "Error: none of these modules is installed\n")


def test_client_compares_both_clients_item_for_item(tmp_path):
    options = ["-n", "50", "--rounds", "2", "--batch", "20", "--data-in", str(tmp_path)]
    done = bench("client.py", *options)
    assert done.returncode == 0, done.stderr
    _, _, *rows = done.stdout.splitlines()
    assert [row.partition("  ")[0] for row in rows] == [
        "put : set",
        "get : get",
        "put_many of 20 : set",
        "reserve_many of 20 : get/open, get/close",
        "put : set, again",
        "reserve : get/open, get/close",
    ]
    assert not list(tmp_path.glob("darner-bench-*"))


def test_stall_reports_the_waits_of_a_small_client_and_leaves_no_queue_behind(server, tmp_path):
    file, png = tmp_path / "stall.json", tmp_path / "stall.png"
    name = f"darner=127.0.0.1:{server.port}:{server.process.pid}"
    options = ["--minutes", "0.03", "--backlog", "500", "--large", "1"]
    done = bench("stall.py", name, *options, "--json", str(file), "--plot", str(png))
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    (row,) = found["rows"]
    assert row["cell"] == {"minute": 1}
    assert row["error"] == ""
    assert row["figures"]["requests"] > 10
    assert 0 < row["figures"]["p99_ms"] <= row["figures"]["p999_ms"] <= row["figures"]["max_ms"]
    assert any(note.startswith("darner: longest ") for note in found["notes"])
    assert not any("errors" in note for note in found["notes"])
    assert png.read_bytes().startswith(b"\x89PNG")
    assert server.stat("curr_items") == 0


def test_soak_kills_clients_and_finds_nothing_lost(tmp_path):
    file, png = tmp_path / "soak.json", tmp_path / "soak.png"
    little = ["--minutes", "0.05", "--rate", "20", "--backlog", "50", "--large", "70", "--kill-every", "0.3"]
    # within seconds no figure is flat
    options = [*little, "--tolerance", "1000", "--drain-for", "20", "--data-in", str(tmp_path)]
    done = bench("single/soak.py", *options, "--json", str(file), "--plot", str(png))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert found["wrong"] == []
    assert found["kills"] > 0
    queues = {one["queue"] for one in found["accounts"]}
    assert queues >= {"plain", "jobs", "deep", "large", "fan+a", "watched"}
    assert png.read_bytes().startswith(b"\x89PNG")


class TestLedger:
    @pytest.fixture
    def stream(self):
        stream = ledger.Stream("work", 100)
        self.items = []
        for size in (0, 10, 1000):
            number, item = stream.begin(size)
            stream.stored(number)
            self.items.append(item)
        return stream

    def test_agrees_when_each_item_was_seen(self, stream):
        readers = ledger.Readers(stream, "work", once=True, in_order=True)
        for item in self.items:
            readers.see(item)
        account = readers.account()
        assert (account.stored, account.seen, account.lost, account.violations) == (3, 3, 0, [])

    def test_finds_an_item_that_was_lost(self, stream):
        readers = ledger.Readers(stream, "work", once=True)
        readers.see(self.items[0])
        readers.see(self.items[2])
        assert readers.account().violations == ["work: 1 items were lost, the first [1]"]
        readers.killed = 1  # it may have taken the item
        assert readers.account().violations == []

    def test_finds_an_item_that_came_twice_where_it_must_not(self, stream):
        for once in (True, False):
            readers = ledger.Readers(stream, "work", once=once)
            for item in [*self.items, self.items[0]]:
                readers.see(item)
            assert readers.account().again == 1
            assert bool(readers.account().violations) is once

    def test_refuses_what_is_out_of_order_changed_or_unheard_of(self, stream):
        readers = ledger.Readers(stream, "work", once=True, in_order=True)
        readers.see(self.items[1])
        for item in (self.items[0], self.items[2][:-1] + b"?", stream.item(3, 5), b"", b"a b c d"):
            with pytest.raises(ledger.LedgerError):
                readers.see(item)

    def test_forgives_what_a_killed_client_was_setting(self, stream):
        _, late = stream.begin(10)
        stream.cut()
        readers = ledger.Readers(stream, "work", once=True, in_order=True)
        for item in self.items:
            readers.see(item)
        assert readers.account().violations == []
        after, item = stream.begin(10)
        stream.stored(after)
        readers.see(item)
        readers.see(late)
        assert readers.account().violations == []


def test_a_plot_is_drawn_from_a_json_file_alone(tmp_path):
    cells = [{"beside": "nothing"}, {"beside": "8 MiB"}]
    figures = {"rps": 100.0}
    report = {
        "bench": "fairness",
        "about": "small beside large",
        "rounds": 3,
        "columns": [{"key": "rps", "title": "requests/s"}],
        "plot": {
            "x": "beside",
            "x_words": "beside",
            "split": None,
            "split_words": {},
            "only": {},
            "drawn": {"rps": "small sets a second", "not_measured": "large sets a second"},
        },
        "medians": [
            {"cell": cell, "server": "darner", "figures": figures, "low": figures, "high": figures}
            for cell in cells
        ],
    }
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report))
    result = CliRunner().invoke(plot.main, [str(file)])
    assert result.exit_code == 0, result.output
    picture = imread(file.with_suffix(".png"))
    assert picture.shape[1] == round(plot.WIDTH_INCHES * plot.DOTS)
    assert picture[0, 0, 3] == 0  # transparent
    (panel,) = plot.figure_of(report).axes
    names = ["beside nothing", "darner", "beside 8 MiB", "darner"]
    assert [label.get_text() for label in panel.get_yticklabels()] == names
    assert panel.get_title("left") == "small sets a second"


def test_the_names_of_lines_are_beside_them_and_cover_nothing():
    servers = ["darner", "darner-sync", "original", "mine", "redis"]
    drawn = {"rps": "{}s a second", "p99_us": "p99 of a {}, ms"}
    report = {
        "bench": "packing",
        "about": "lines that end close together " * 5,
        "rounds": 3,
        "plot": {
            "x": "backlog", "x_words": "items in the queue", "only": {"work": ["sets", "gets"]},
            "split": "work", "split_words": {"sets": "set", "gets": "get"}, "drawn": drawn,
        },
        "medians": [
            {"cell": {"backlog": items, "work": work}, "server": server}
            | {key: dict.fromkeys(drawn, rate + by) for key, by in (("figures", 0), ("low", -1), ("high", 1))}
            for items in (0, 65_536, 4_194_304) for work in ("sets", "gets", "left out")
            for rate, server in enumerate(servers, 1000)
        ],
    }  # fmt: skip
    figure = plot.figure_of(report)
    figure.draw_without_rendering()
    titles = ["sets a second", "gets a second", "p99 of a set, ms", "p99 of a get, ms"]
    assert [panel.get_title("left") for panel in figure.axes] == titles
    boxes = [panel.get_window_extent() for panel in figure.axes]
    for panel in figure.axes:
        assert panel.get_xscale() == "symlog"
        assert panel.get_yscale() == ("log" if panel.get_title("left").startswith("p99") else "linear")
        assert sorted(text.get_text() for text in panel.texts) == sorted(servers)
        boxes += [text.get_window_extent() for text in panel.texts]
    # the milliseconds of what is in microseconds
    assert figure.axes[2].get_ylim()[0] < 1 < figure.axes[2].get_ylim()[1]
    boxes += [panel.title.get_window_extent() for panel in figure.axes]
    for box, other in combinations(boxes, 2):
        assert not box.overlaps(other)
    page = figure.bbox
    assert all(page.x0 <= box.x0 and box.x1 <= page.x1 for box in boxes)


def test_a_server_has_one_style_in_all_plots():
    alone, together = plot.styles(["redis"]), plot.styles(["mine", "darner", "redis-sync", "redis", "yours"])
    assert alone["redis"] == together["redis"]
    assert together["redis-sync"].color == together["redis"].color
    assert (together["redis-sync"].filled, together["redis"].filled) == (False, True)
    assert len({(one.color, one.filled) for one in together.values()}) == 5


def test_a_table_for_the_docs_is_made_from_a_json_file_alone(tmp_path):
    def one(work: str, server: str, figures: dict[str, float], **more: object) -> dict[str, object]:
        return {"cell": {"work": work, "size": 1024}, "server": server, "figures": figures} | more

    report = {
        "columns": [
            {"key": "rps", "title": "items/s", "digits": 0, "compared": True},
            {"key": "p99_ms", "title": "p99 ms", "digits": 2, "compared": False},
        ],
        "remark": "on disk",
        "medians": [
            one("put", "a", {"rps": 1234.5, "p99_ms": 0.5}, low={"rps": 1000}, high={"rps": 2000},
                ratios={"rps": 1.0}, remark="fsync"),
            one("put", "b", {"p99_ms": 0.25}, low={}, high={}, ratios={}, remark=""),
            one("put", "c", {}, low={}, high={}, ratios={}, remark=""),
            one("get", "a", {"rps": 1.0}, low={"rps": 1}, high={"rps": 1}, ratios={}, remark=""),
        ],
    }  # fmt: skip
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report))
    result = CliRunner().invoke(markdown.main, [str(file), "--columns", "rps,p99_ms", "--where", "work=put"])
    assert result.output.splitlines() == [
        "| size | server | on disk | items/s | low … high | ratio | p99 ms |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| 1,024 | a | fsync | 1,234 | 1,000 … 2,000 | 1.00 | 0.50 |",
        "| 1,024 | b |  | - | - | - | 0.25 |",
    ]
    result = CliRunner().invoke(markdown.main, [str(file), "--columns", "cost"])
    assert result.exit_code == 2
    assert "the columns are rps, p99_ms" in result.output


def test_the_raw_driver_counts_what_a_server_answers(server):
    target = servers.Server("darner", "127.0.0.1", server.port, server.process.pid)
    assert target.is_queue()
    result = raw.run(target, raw.Load(3, 30, pipeline=5, sets=2, gets=3, size=10))
    assert (result.stored, result.hits, result.misses, result.errors) == (12, 12, 6, 0)
    assert result.requests == 30
    large = raw.run(target, raw.Load(1, 2, size=1 << 20))
    assert (large.stored, large.hits) == (1, 1)
    refused = raw.run(target, raw.Load(1, 4, sets=0, get_options="/no-such-option"))
    assert refused.errors == 4
    assert refused.first_error.startswith("CLIENT_ERROR")


def test_the_raw_driver_ends_when_its_time_is_up(server):
    target = servers.Server("darner", "127.0.0.1", server.port)
    result = raw.run(target, raw.Load(2, 100_000_000, seconds=0.2))
    assert 0.2 <= result.seconds < 5
    assert 0 < result.requests < 1_000_000
    assert result.server_busy == -1


def test_the_client_is_said_to_be_the_limit_only_while_the_server_is_not():
    def result(client_busy: float, server_busy: float) -> raw.Result:
        return raw.Result(1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, "", client_busy, server_busy, -1)

    assert result(0.95, 0.5).client_limited
    assert result(0.95, -1).client_limited
    assert not result(0.95, 0.95).client_limited
    assert not result(0.5, 0.5).client_limited
