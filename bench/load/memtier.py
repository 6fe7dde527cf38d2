#!/usr/bin/env python3
"""A load generator with memtier_benchmark's options, tables and JSON, on pymemcache, for queues.

The key space is the set of queues: `--key-prefix` and a number from `--key-minimum` to `--key-maximum`.
Where this differs from memtier_benchmark:

\b
- the defaults of --port (22133), --protocol (memcache_text), --ratio (1:1), --key-minimum and --key-maximum
  (1: one queue) are for a queue server;
- a thread is a process here, and a client one of its threads: that is how Python uses several cores;
- --pipeline sends so many requests in one write, and the next when all of them are answered;
- `allkeys` counts the last key, too;
- only loopback addresses are loaded.

A Python client is soon the limit itself; if so, a line on standard error says it. raw.py goes further.
"""

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import psutil  # type: ignore[import-untyped,unused-ignore]

sys.path.insert(0, str(Path(__file__).parents[1]))

from load import options
from load.memtier_report import Report
from load.memtier_run import Config, Run, run_once, together
from load.options import option
from load.raw import BUSY, ratio
from load.servers import loopback

PAUSE_S = 1.0
REQUESTS = 10_000
# Options of memtier_benchmark for what a queue, or this client, cannot do.
# fmt: off
UNSUPPORTED_FLAGS = (
    "tls", "tls-skip-verify", "cluster-mode", "data-verify", "verify-only", "generate-keys",
    "no-expiry", "reconnect-on-error", "scan-incremental-iteration", "ipv4", "ipv6",
)
UNSUPPORTED = (
    "unix-socket", "authenticate", "uri", "cert", "key", "cacert", "sni", "tls-protocols",
    "client-stats", "hdr-file-prefix", "command-stats-breakdown", "statsd-host", "statsd-port",
    "statsd-prefix", "statsd-run-label", "graphite-port", "rate-limiting", "clients-start",
    "clients-step", "step-duration", "reconnect-interval", "max-reconnect-attempts",
    "reconnect-backoff-factor", "thread-conn-start-min-jitter-micros",
    "thread-conn-start-max-jitter-micros", "multi-key-get", "select-db", "command", "command-ratio",
    "command-key-pattern", "monitor-input", "monitor-pattern", "scan-incremental-max-iterations",
    "data-offset", "data-size-list", "data-size-pattern", "expiry-range", "data-import", "key-zipf-exp",
    "wait-ratio", "num-slaves", "wait-timeout",
)
# fmt: on
SHORT = {"unix-socket": "-S", "authenticate": "-a", "uri": "-u", "ipv4": "-4", "ipv6": "-6"}


def _size_range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    if not (low.isdecimal() and high.isdecimal() and int(low) <= int(high)):
        raise click.BadParameter(f"data-size-range must be expressed as [1-n]-[1-n], not {text!r}")
    return int(low), int(high)


def _percentile_list(text: str) -> list[float]:
    try:
        parts = [float(word) for word in text.split(",")]
    except ValueError:
        parts = [-1.0]
    if not all(0 <= part <= 100 for part in parts):
        raise click.BadParameter("quantiles must be expressed as [0.0-100.0],[0.0-100.0](,...)")
    return parts


def _pattern(text: str) -> str:
    verbs = text.split(":")
    if len(verbs) != 2 or not set(verbs) <= set("RGSP"):
        raise click.BadParameter("key-pattern must be [S/R/G/P]:[S/R/G/P]; Z is not supported here")
    if verbs.count("P") == 1:
        raise click.BadParameter("parallel key-pattern must be configured for both SET and GET commands")
    return text


def _request_count(text: str) -> int:
    """Return the number of requests; -1 for allkeys."""
    if text == "allkeys":
        return -1
    if not text.isdecimal() or not 0 < int(text) <= 1_000_000_000:
        raise click.BadParameter("requests must be greater than zero, or allkeys")
    return int(text)


def _protocol(text: str) -> str:
    if text != "memcache_text":
        raise click.BadParameter(f"{text!r} is not supported here: queue servers speak memcache_text")
    return text


def _refuse(_: click.Context, option: click.Parameter, value: object) -> None:
    if value:
        raise click.UsageError(f"memtier_benchmark's {option.opts[0]} is not supported here")


def _unsupported(command: click.Command) -> click.Command:
    """Add the options of memtier_benchmark that are refused here, so that they are refused by name."""
    for name in UNSUPPORTED + UNSUPPORTED_FLAGS:
        names = [f"--{name}", *filter(None, [SHORT.get(name)])]
        flag = name in UNSUPPORTED_FLAGS
        command.params.append(
            click.Option(names, is_flag=flag, hidden=True, expose_value=False, callback=_refuse)
        )
    return command


COUNT = click.IntRange(1, 20_000)
KEY = click.IntRange(0, 1_000_000_000)


@_unsupported
@click.command(help=__doc__, context_settings={"help_option_names": ["--help"], "max_content_width": 120})
@option("-s -h --server --host", "127.0.0.1", loopback, metavar="ADDR")
@option("-p --port", 22133, options.PORT)
@option("-P --protocol", "memcache_text", _protocol, metavar="PROTOCOL")
@option("-x --run-count", 1, click.IntRange(1, 1000))
@click.option("-D", "--debug", is_flag=True, help="Print each kind of error.")
@click.option(
    "-o", "--out-file", type=click.Path(dir_okay=False), help="Name of output file (default: stdout)."
)
@click.option("--json-out-file", type=click.Path(dir_okay=False), help="Name of JSON output file.")
@click.option("--show-config", is_flag=True, help="Print detailed configuration before running.")
@click.option("--hide-histogram", is_flag=True, help="Do not print the latency distribution.")
@option("--print-percentiles", "50,99,99.9", _percentile_list, metavar="LIST")
@click.option("--print-all-runs", is_flag=True, help="Print each of several runs.")
@click.option(
    "-n",
    "--requests",
    metavar="NUMBER",
    type=_request_count,
    help="Per client, or allkeys.  [default: 10000]",
)
@option("-c --clients", 50, COUNT, "Per thread.")
@option("-t --threads", 4, click.IntRange(1, 256))
@click.option(
    "--test-time", default=0, type=click.IntRange(0, 86_400), help="Seconds, instead of --requests."
)
@option("--ratio", "1:1", ratio, "Set:Get ratio.")
@options.pipeline(1)
@click.option("--connection-timeout", default=0, type=click.IntRange(0, 3600), help="Seconds; 0: 60.")
@click.option("--distinct-client-seed", is_flag=True, help="A different random seed for each client.")
@click.option("--randomize", is_flag=True, help="Random seed based on timestamp.")
@option("-d --data-size", 32, options.DATA_SIZE, "Bytes of an item.")
@click.option("-R", "--random-data", is_flag=True, help="Items of random letters.")
@click.option(
    "--data-size-range",
    metavar="RANGE",
    default="0-0",
    type=_size_range,
    help="Items of random size, min-max.",
)
@option("--key-prefix", "memtier-", str)
@option("--key-minimum", 1, KEY)
@option("--key-maximum", 1, KEY)
@option("--key-pattern", "R:R", _pattern, "Set:Get, each of R G S P.", metavar="PATTERN")
@click.option("--key-stddev", default=0.0, type=click.FloatRange(0), help="Of G.  [default: key range / 6]")
@click.option("--key-median", default=0.0, type=click.FloatRange(0), help="Of G.  [default: the center]")
def main(requests: int | None, **given: Any) -> None:
    """Run as memtier_benchmark does."""
    config = Config(requests=_requests(requests, given), **given)
    if config.show_config:
        for name, value in config.as_memtier().items():
            click.echo(f"{name} = {value}", err=True)
    if not config.out_file:
        click.echo("Writing results to stdout", err=True)
    runs, errors = [], Counter[str]()
    for number in range(1, config.run_count + 1):
        if number > 1:
            time.sleep(PAUSE_S)
        psutil.cpu_percent()
        run, of_run, busy = run_once(config, number)
        _say_limit(busy, psutil.cpu_percent() / 100)
        runs.append(run)
        errors.update(of_run)
    with click.open_file(config.out_file or "-", "w") as out:
        report = Report(config, out)
        report.head()
        _report_runs(report, config, runs)
    if config.json_out_file:
        Path(config.json_out_file).write_text(json.dumps(report.json, indent="\t") + "\n")
    for error, count in errors.most_common(None if config.debug else 1):
        click.echo(f"error response, {count} times: {error}", err=True)
    sys.exit(1 if errors else 0)


def _requests(requests: int | None, given: dict[str, Any]) -> int:
    """Return the number of requests of each client; 0 if --test-time ends the run."""
    if requests and given["test_time"]:
        raise click.UsageError("--test-time and --requests are mutually exclusive.")
    if given["key_minimum"] > given["key_maximum"]:
        raise click.UsageError("key-maximum must not be smaller than key-minimum.")
    if requests == -1:
        keys: int = given["key_maximum"] - given["key_minimum"] + 1
        clients = given["clients"] * given["threads"]
        requests = keys // clients + 1 if given["key_pattern"] == "P:P" else keys
        click.echo(f"setting requests to {requests}", err=True)
    return 0 if given["test_time"] else requests or REQUESTS


def _report_runs(report: Report, config: Config, runs: list[Run]) -> None:
    if len(runs) == 1:
        report.add(runs[0], "ALL STATS")
        return
    if config.print_all_runs:
        for number, run in enumerate(runs, 1):
            report.add(run, f"RUN #{number} RESULTS")
    by_rate = sorted(runs, key=lambda run: run.verb("Totals").count / run.seconds)
    report.add(by_rate[-1], "BEST RUN RESULTS")
    report.add(by_rate[0], "WORST RUN RESULTS")
    report.add(together(runs), f"AGGREGATED AVERAGE RESULTS ({len(runs)} runs)")


def _say_limit(busy: float, machine_busy: float) -> None:
    """Warn if a client process, or the whole machine, was the limit."""
    if busy >= BUSY:
        limit = f"a process of it was {busy:.0%} busy"
    elif machine_busy >= BUSY:
        limit = f"all cores were busy ({machine_busy:.0%}), and it took them from the server"
    else:
        return
    click.echo(f"This client was the limit: {limit}. The server may be faster: see raw.py.", err=True)


if __name__ == "__main__":
    main()
