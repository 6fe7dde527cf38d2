"""The alerts and the dashboard in docs/: each works on what a server really tells."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from running import configured, until
from test_probes import ask, metrics_port

DOCS = Path(__file__).parents[2] / "docs"
RULES = DOCS / "prometheus" / "darner.rules.yml"
DASHBOARD = json.loads((DOCS / "grafana" / "darner.json").read_text())
ALERTS = re.findall(r"^      - alert: (\w+)$", RULES.read_text(), re.MULTILINE)
OPERATIONS = (DOCS / "operations.md").read_text()
METRIC = re.compile(r"\b(?:darner|process)_\w+")

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is missing: apt-get install prometheus"
)


def promtool(*words: object, said: str | None = None) -> str:
    done = subprocess.run(
        ["promtool", *map(str, words)], input=said, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def scrape(tmp_path_factory) -> str:
    """The metrics of a server that has a queue with a cursor, and has synced."""
    directory = tmp_path_factory.mktemp("monitoring")
    (directory / "data" / "broken").mkdir(parents=True)
    (directory / "data" / "broken" / "CURRENT").write_text("x")
    with configured(directory, "metrics_port = 0\n") as server:
        wire = server.connect()
        assert wire.ask(b"set synced/sync 0 0 1\r\nx\r\n") == b"STORED\r\n"
        assert wire.get(b"synced/cursor=reader") == b"x"
        port = metrics_port(server)
        until(lambda: "darner_commit_seconds_count 0.0" not in ask(port, "/metrics")[1])
        wire.close()
        return ask(port, "/metrics")[1]


@pytest.fixture(scope="module")
def series(scrape) -> dict[str, float]:
    """What was scraped: names and labels, with their values."""
    return {
        sample.name + "".join(f",{key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(scrape)
        for sample in family.samples
    }


def expressions() -> list[str]:
    """Return what the dashboard asks Prometheus for."""
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


class TestScrape:
    def test_has_histograms_that_count(self, series):
        for name in ("reply", "log_sync", "commit"):
            count = series[f"darner_{name}_seconds_count"]
            assert count == series[f"darner_{name}_seconds_bucket,le=+Inf"] > 0
            assert series[f"darner_{name}_seconds_bucket,le=10.0"] == count
            assert 0 < series[f"darner_{name}_seconds_sum"] < 10 * count
            counts = [
                value for key, value in series.items() if key.startswith(f"darner_{name}_seconds_bucket")
            ]
            assert counts == sorted(counts)
        # a sync is a part of the reply that waits for it
        assert series["darner_reply_seconds_sum"] > series["darner_log_sync_seconds_sum"]

    def test_is_listed_on_the_page(self, scrape):
        rows = []
        for family in text_string_to_metric_families(scrape):
            labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
            total = "_total" if family.type == "counter" else ""
            name = f"{family.name}{total}{{{','.join(labels)}}}" if labels else f"{family.name}{total}"
            rows.append(f"| `{name}` | {family.type} | {family.documentation} |")
        page = (DOCS / "metrics.md").read_text()
        listed = re.findall(r"^\| `darner_[^`]+` \| (?:gauge|counter|histogram) \| .*$", page, re.MULTILINE)
        assert listed == [row for row in rows if row.startswith("| `darner_")]

    def test_names_what_is_out_of_service_and_counts_what_was_logged(self, series):
        assert series["darner_queue_out_of_service,queue=broken"] == 1
        assert series["darner_queues_out_of_service"] == 1
        assert series["darner_logged_events_total,level=error"] >= 1

    def test_tells_the_state_of_the_server(self, series):
        assert series["darner_status"] == series["darner_disk_full"] == series["darner_log_refusing"] == 0
        assert series["darner_log_bytes"] >= 4 << 20
        assert series["darner_disk_free_bytes"] > 0
        assert series["darner_connections_limit"] > series["darner_connections"]

    @needs_promtool
    def test_pleases_promtool(self, scrape):
        assert promtool("check", "metrics", said=scrape) == ""


class TestDashboard:
    def test_asks_for_what_there_is(self, series):
        there = {key.partition(",")[0] for key in series}
        asked = set(METRIC.findall(" ".join(expressions())))
        assert len(asked) > 40
        assert asked <= there

    def test_has_no_panel_upon_another_and_says_what_each_shows(self):
        cells = set()
        for panel in DASHBOARD["panels"]:
            at = panel["gridPos"]
            covered = {
                (x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
            }
            assert not covered & cells, panel["title"]
            assert max(x for x, _ in covered) < 24
            cells |= covered
            assert panel["title"]
        assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])

    def test_takes_its_data_from_where_the_user_chooses(self):
        variables = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
        assert variables == ["datasource", "instance", "queue"]
        for panel in DASHBOARD["panels"]:
            for part in (panel, *panel.get("targets", ())):
                assert part.get("datasource", {}).get("uid", "${datasource}") == "${datasource}"
            for target in panel.get("targets", ()):
                assert 'instance=~"$instance"' in target["expr"]

    @needs_promtool
    def test_asks_in_a_language_that_prometheus_knows(self, tmp_path):
        rules = [
            {
                "record": f"panel:{n}",
                "expr": expr.replace("$__rate_interval", "5m").replace("$instance", ".*"),
            }
            for n, expr in enumerate(expressions())
        ]
        # JSON is YAML
        (tmp_path / "panels.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
        assert f"{len(rules)} rules found" in promtool("check", "rules", tmp_path / "panels.yml")


def buckets(name: str, fast: str, slow: str) -> list[tuple[str, str]]:
    """Return series of a histogram of which so many took 0.1 s, and so many up to 1 s."""
    return [
        (f'{name}_bucket{{le="0.1"}}', fast),
        (f'{name}_bucket{{le="1.0"}}', slow),
        (f'{name}_bucket{{le="+Inf"}}', slow),
    ]


W = '{queue="work"}'
# Of each alert: the series that fire it, and such as do not, with a value a minute; after how many minutes;
# and the labels it has besides.
CASES = {
    "DarnerDown": ([('up{job="darner"}', "1 0x9")], [('up{job="darner"}', "1 0 1x8")], 5, {"job": "darner"}),
    "DarnerDiskFull": ([("darner_disk_full", "1x9")], [("darner_disk_full", "1 0x9")], 5, {}),
    "DarnerDiskFillsUp": (
        [("darner_disk_free_bytes", "10000000-50000x100")],
        [("darner_disk_free_bytes", "10000000-10000x100")],
        90,
        {},
    ),
    "DarnerCannotWrite": (
        [("darner_log_refusing", "0x9"), ("darner_queues_failing", "2x9")],
        [("darner_log_refusing", "0x9"), ("darner_queues_failing", "0x9")],
        5,
        {},
    ),
    "DarnerSyncFails": (
        [("darner_log_sync_failures_total", "0x5 1x9")],
        [("darner_log_sync_failures_total", "7x14")],
        8,
        {},
    ),
    "DarnerQueueOutOfService": (
        [("darner_queue_out_of_service" + W, "1x9")],
        [("darner_queue_out_of_service" + W, "1 _x9")],
        8,
        {"queue": "work"},
    ),
    "DarnerItemsDamaged": (
        [("darner_queue_damaged_items_total" + W, "0x5 3x9")],
        [("darner_queue_damaged_items_total" + W, "3x14")],
        10,
        {"queue": "work"},
    ),
    "DarnerQueueStalled": (
        [("darner_queue_head_age_seconds" + W, "0+60x30")],
        [("darner_queue_head_age_seconds" + W, "0x5 60x25")],
        15,
        {"queue": "work"},
    ),
    "DarnerQueueGrows": (
        [("darner_queue_items" + W, "20000+10x60")],
        [("darner_queue_items" + W, "90000-10x60")],
        40,
        {"queue": "work"},
    ),
    "DarnerQueueFull": (
        [
            ("darner_queue_items" + W, "5x9"),
            ("darner_queue_max_items" + W, "9x9"),
            ("darner_queue_item_bytes" + W, "98x9"),
            ("darner_queue_max_bytes" + W, "100x9"),
        ],
        [
            ("darner_queue_items" + W, "5x9"),
            ("darner_queue_max_items" + W, "9x9"),
            ("darner_queue_item_bytes" + W, "9x9"),
            ("darner_queue_max_bytes" + W, "0x9"),
        ],
        5,
        {"queue": "work"},
    ),
    "DarnerItemsDiscarded": (
        [("darner_queue_discarded_items_total" + W, "0x5 3x9")],
        [("darner_queue_discarded_items_total" + W, "3x14")],
        8,
        {"queue": "work"},
    ),
    "DarnerItemsComeBack": (
        [
            ("darner_queue_canceled_transactions_total" + W, "0+20x60"),
            ("darner_queue_transactions_total" + W, "0+100x60"),
        ],
        [
            ("darner_queue_canceled_transactions_total" + W, "0+5x60"),
            ("darner_queue_transactions_total" + W, "0+100x60"),
        ],
        40,
        {"queue": "work"},
    ),
    "DarnerCursorFallsBehind": (
        [('darner_queue_cursor_lag_items{queue="work",cursor="c"}', "20000+10x60")],
        [('darner_queue_cursor_lag_items{queue="work",cursor="c"}', "20000x60")],
        40,
        {"queue": "work", "cursor": "c"},
    ),
    "DarnerSetsFailUnseen": (
        [("darner_noreply_errors_total", "0x5 1x9")],
        [("darner_noreply_errors_total", "1x14")],
        8,
        {},
    ),
    "DarnerSlow": (
        buckets("darner_reply_seconds", "0+90x40", "0+100x40"),
        buckets("darner_reply_seconds", "0+100x40", "0+100x40"),
        30,
        {},
    ),
    "DarnerDiskSlow": (
        buckets("darner_log_sync_seconds", "0+50x40", "0+100x40"),
        buckets("darner_log_sync_seconds", "0+100x40", "0+100x40"),
        30,
        {},
    ),
    "DarnerLogGrows": ([("darner_log_bytes", "300000000x20")], [("darner_log_bytes", "40000000x20")], 15, {}),
    "DarnerNotUp": ([("darner_status", "1x30")], [("darner_status", "1x9 0x20")], 20, {}),
    "DarnerConnectionsRunOut": (
        [("darner_connections", "81x20"), ("darner_connections_limit", "100x20")],
        [
            ("darner_connections", "79x20"),
            ("darner_connections_limit", "100x20"),
            ("darner_rejected_connections_total", "5x20"),
        ],
        10,
        {},
    ),
    "DarnerDescriptorsRunOut": (
        [('process_open_fds{job="darner"}', "90x20"), ('process_max_fds{job="darner"}', "100x20")],
        [('process_open_fds{job="darner"}', "9x20"), ('process_max_fds{job="darner"}', "100x20")],
        10,
        {"job": "darner"},
    ),
    "DarnerLoginsFail": (
        [("darner_failed_logins_total", "0+50x20")],
        [("darner_failed_logins_total", "0+5x20")],
        10,
        {},
    ),
}


def of_instance(name: str, series: list[tuple[str, str]]) -> list[dict[str, str]]:
    """Return series as promtool takes them, with the label of their server."""
    found = []
    for metric, values in series:
        bare, _, labels = metric.partition("{")
        found.append({"series": f'{bare}{{instance="{name}",{labels or "}"}', "values": values})
    return found


class TestAlerts:
    def test_have_each_a_summary_a_description_and_a_place_in_the_page(self):
        text = RULES.read_text()
        assert len(ALERTS) == len(set(ALERTS)) > 15
        for key in ("summary", "description", "severity", "runbook_url"):
            assert len(re.findall(rf"\b{key}:", text)) == len(ALERTS)
        headings = re.findall(r"^### (\w+)$", OPERATIONS, re.MULTILINE)
        assert headings == ALERTS
        assert re.findall(r"runbook_url: docs/operations.md#(\w+)$", text, re.MULTILINE) == [
            alert.lower() for alert in ALERTS
        ]

    def test_are_of_what_there_is(self, series):
        there = {key.partition(",")[0] for key in series}
        named = set(
            METRIC.findall(
                " ".join(re.findall(r"expr: (?:>\n)?((?:.*\n)+?) +(?:for|labels):", RULES.read_text()))
            )
        )
        assert len(named) > 20
        assert named <= there

    @needs_promtool
    def test_are_rules_that_prometheus_takes(self):
        assert f"{len(ALERTS)} rules found" in promtool("check", "rules", RULES)

    @needs_promtool
    def test_fire_when_something_is_wrong_and_only_then(self, tmp_path):
        assert list(CASES) == ALERTS
        tests = []
        for alert, (loud, quiet, minutes, labels) in CASES.items():
            kept = {"alertname": alert, "instance": "loud", **labels}
            named = ",".join(f'{key}="{value}"' for key, value in kept.items())
            fired = f'sum by ({",".join(kept)}) (ALERTS{{alertname="{alert}", alertstate="firing"}})'
            samples = [{"labels": "{" + named + "}", "value": 1}]
            tests.append(
                {
                    "interval": "1m",
                    "input_series": of_instance("loud", loud) + of_instance("quiet", quiet),
                    "promql_expr_test": [{"expr": fired, "eval_time": f"{minutes}m", "exp_samples": samples}],
                }
            )
        path = tmp_path / "alerts.test.yml"
        path.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
        assert "SUCCESS" in promtool("test", "rules", path)
