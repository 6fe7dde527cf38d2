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

A Python client is soon the limit itself; where it was, that is said on standard error. raw.py goes further.
"""

import ctypes
import json
import multiprocessing
import random
import resource
import string
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.pool import AsyncResult
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import IO, Any

import click
import psutil  # type: ignore[import-untyped,unused-ignore]
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped,unused-ignore]
from pymemcache.client.base import Client  # type: ignore[import-untyped,unused-ignore]
from pymemcache.exceptions import MemcacheError  # type: ignore[import-untyped,unused-ignore]
from raw import BUSY, raise_open_files, ratio
from servers import loopback

# memtier's histograms: 10 us to 100 minutes, three digits; of one second, two digits.
HISTOGRAM_US = (10, 6_000_000_000)
HISTOGRAM_DIGITS, SECOND_DIGITS = 3, 2
# Points between one halving of what is left to 100 % and the next.
TICKS_PER_HALF = 10
START_S = 60.0
PROGRESS_S = 0.2
REPLY_S = 60.0
# A run that was given no time ends by itself after so long.
MAX_RUN_S = 3600.0
PAUSE_S = 1.0
REQUESTS = 10_000
FORMAT_VERSION = 2
# What memtier can do and a queue, or this client, cannot.
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


@dataclass(frozen=True)
class Config:
    """The options, as memtier names them."""

    server: str
    port: int
    protocol: str
    clients: int
    threads: int
    requests: int
    test_time: int
    run_count: int
    ratio: tuple[int, int]
    pipeline: int
    data_size: int
    data_size_range: tuple[int, int]
    random_data: bool
    key_prefix: str
    key_minimum: int
    key_maximum: int
    key_pattern: str
    key_stddev: float
    key_median: float
    distinct_client_seed: bool
    randomize: bool
    connection_timeout: int
    out_file: str | None
    json_out_file: str | None
    hide_histogram: bool
    print_percentiles: list[float]
    print_all_runs: bool
    show_config: bool
    debug: bool

    def as_memtier(self) -> dict[str, Any]:
        """Return memtier's "configuration", with its own value for what cannot be set here."""
        low, high = self.data_size_range
        return {
            "server": self.server,
            "port": self.port,
            "uri": "",
            "unix socket": None,
            "address family": "Unspecified",
            "protocol": self.protocol,
            "out_file": self.out_file,
            "tls": "false",
            "cert": None,
            "key": None,
            "cacert": None,
            "tls_skip_verify": "false",
            "sni": None,
            "client_stats": None,
            "run_count": self.run_count,
            "debug": int(self.debug),
            "requests": self.requests,
            "rate_limit": 0,
            "clients": self.clients,
            "threads": self.threads,
            "test_time": self.test_time,
            "ratio": "{}:{}".format(*self.ratio),
            "pipeline": self.pipeline,
            "data_size": 0 if high else self.data_size,
            "data_offset": 0,
            "random_data": str(self.random_data).lower(),
            "data_size_range": f"{low}:{high}",
            "data_size_list": "",
            "data_size_pattern": "R",
            "expiry_range": "0:0",
            "data_import": None,
            "data_verify": "false",
            "verify_only": "false",
            "generate_keys": "false",
            "key_prefix": self.key_prefix,
            "key_minimum": self.key_minimum,
            "key_maximum": self.key_maximum,
            "key_pattern": self.key_pattern,
            "key_stddev": self.key_stddev,
            "key_median": self.key_median,
            "key_zipf_exp": 0.0,
            "reconnect_interval": 0,
            "connection_timeout": self.connection_timeout,
            "thread_conn_start_min_jitter_micros": 0,
            "thread_conn_start_max_jitter_micros": 0,
            "multi_key_get": 0,
            "authenticate": "",
            "select-db": 0,
            "no-expiry": "false",
            "wait-ratio": "0:0",
            "num-slaves": "0:0",
            "wait-timeout": "0-0",
            "print-all-runs": str(self.print_all_runs).lower(),
        }


@dataclass
class Second:
    """What one verb did in one second."""

    latencies_us: Counter[int] = field(default_factory=Counter)
    received: int = 0
    sent: int = 0
    hits: int = 0

    def add(self, other: "Second") -> None:
        """Count another in."""
        self.latencies_us.update(other.latencies_us)
        self.received += other.received
        self.sent += other.sent
        self.hits += other.hits

    @property
    def count(self) -> int:
        """How many requests."""
        return self.latencies_us.total()

    @property
    def total_us(self) -> int:
        """The sum of their latencies."""
        return sum(latency * count for latency, count in self.latencies_us.items())

    def histogram(self, digits: int) -> Any:
        """Return their latencies as a histogram."""
        histogram = HdrHistogram(*HISTOGRAM_US, digits)
        for latency_us, count in self.latencies_us.items():
            histogram.record_value(min(max(latency_us, HISTOGRAM_US[0]), HISTOGRAM_US[1]), count)
        return histogram


# By verb ("Sets", "Gets"), then by second of the run.
Series = dict[str, dict[int, Second]]


@dataclass
class Done:
    """What one process did."""

    series: Series = field(default_factory=lambda: {"Sets": {}, "Gets": {}})
    started_s: float = 0.0
    finished_s: float = 0.0
    busy: float = 0.0
    lost_connections: int = 0
    errors: Counter[str] = field(default_factory=Counter)


class Pipeline(Client):  # type: ignore[misc,unused-ignore]
    """A pymemcache client that can have several requests under way."""

    def connect(self) -> None:
        """Connect now rather than at the first request."""
        self._connect()
        self.replies = self.sock.makefile("rb")

    def reply(self) -> tuple[bytes, int]:
        """Read one reply; returns its first line and how many bytes it has."""
        line: bytes = self.replies.readline()
        size = len(line)
        if line.startswith(b"VALUE "):
            rest = int(line.split()[3]) + len(b"\r\nEND\r\n")
            size += len(self.replies.read(rest))
        elif not line:
            raise ConnectionError("the server closed the connection")
        return line, size


class Keys:
    """The keys of one client, by one pattern."""

    def __init__(self, pattern: str, config: Config, number: int, seed: random.Random) -> None:
        low, high = config.key_minimum, config.key_maximum
        clients = config.clients * config.threads
        if pattern == "P":
            share = (high - low) // clients + 1
            low = min(low + share * number, high)
            high = min(low + share - 1, high)
        self._low, self._high, self._pattern = low, high, pattern
        self._next = low
        self._median = config.key_median or (low + high) / 2
        self._stddev = config.key_stddev or (high - low) / 6
        self._random = seed

    def next(self) -> int:
        """Return the number of the next key."""
        if self._low == self._high:
            return self._low
        if self._pattern == "R":
            return self._random.randint(self._low, self._high)
        if self._pattern == "G":
            while True:
                number = round(self._random.gauss(self._median, self._stddev))
                if self._low <= number <= self._high:
                    return number
        number, self._next = self._next, self._next + 1
        if self._next > self._high:
            self._next = self._low
        return number


class Worker(threading.Thread):
    """One client: its connection, its requests, what it saw."""

    def __init__(self, config: Config, number: int, counts: Any) -> None:
        super().__init__(daemon=True)
        self._config, self._number, self._counts = config, number, counts
        self.done = Done()
        distinct = number if config.distinct_client_seed else 0
        seed = random.Random(None if config.randomize else distinct)
        set_pattern, _, get_pattern = config.key_pattern.partition(":")
        self._set_keys = Keys(set_pattern, config, number, seed)
        self._get_keys = Keys(get_pattern, config, number, seed)
        self._random = seed
        letters = string.ascii_letters + string.digits
        longest = max(config.data_size, config.data_size_range[1])
        text = "".join(seed.choices(letters, k=longest)) if config.random_data else "x" * longest
        self._item = text.encode()
        self._client = Pipeline(
            (config.server, config.port),
            connect_timeout=config.connection_timeout or START_S,
            timeout=REPLY_S,
            no_delay=True,
            default_noreply=False,
        )
        self._begin = threading.Event()
        self._started_s = self._end_s = 0.0

    def connect(self) -> None:
        """Open the connection."""
        self._client.connect()

    def begin(self, started_s: float, end_s: float) -> None:
        """Let it send, until that time at most."""
        self._started_s, self._end_s = started_s, end_s
        self._begin.set()

    def run(self) -> None:
        """Send requests until they are done or the time is up."""
        self._begin.wait(START_S)
        left = self._config.requests or sys.maxsize
        verbs = self._verbs()
        send = self._send_one if self._config.pipeline == 1 else self._send_several
        try:
            while left > 0 and time.time() < self._end_s:
                left -= send(verbs, left)
        except (OSError, ValueError) as error:
            self.done.lost_connections += 1
            self.done.errors[f"{type(error).__name__}: {error}"] += 1
        finally:
            self._client.close()

    def _verbs(self) -> Iterator[str]:
        sets, gets = self._config.ratio
        while True:
            for _ in range(sets):
                yield "Sets"
            for _ in range(gets):
                yield "Gets"

    def _next_request(self, verb: str) -> tuple[str, bytes]:
        keys = self._set_keys if verb == "Sets" else self._get_keys
        key = f"{self._config.key_prefix}{keys.next()}"
        low, high = self._config.data_size_range
        size = self._random.randint(low, high) if high else self._config.data_size
        return key, self._item[:size]

    def _send_one(self, verbs: Iterator[str], _: int) -> int:
        verb = next(verbs)
        key, item = self._next_request(verb)
        started_ns = time.perf_counter_ns()
        value = None
        try:
            if verb == "Sets":
                self._client.set(key, item)
            else:
                value = self._client.get(key)
        except MemcacheError as error:
            self.done.errors[f"{type(error).__name__}: {error}"] += 1
            if self._client.sock is None:
                self._client.connect()
        latency_us = (time.perf_counter_ns() - started_ns) // 1000
        sent, received = _wire_bytes(verb, key, len(item), None if value is None else len(value))
        self._note(verb, latency_us, sent, received, hit=value is not None)
        return 1

    def _send_several(self, verbs: Iterator[str], left: int) -> int:
        requests, written = [], []
        for _ in range(min(self._config.pipeline, left)):
            verb = next(verbs)
            key, item = self._next_request(verb)
            data = f"get {key}\r\n".encode()
            if verb == "Sets":
                data = b"set %s 0 0 %d\r\n%s\r\n" % (key.encode(), len(item), item)
            requests.append((verb, len(data)))
            written.append(data)
        started_ns = time.perf_counter_ns()
        self._client.sock.sendall(b"".join(written))
        for verb, sent in requests:
            line, received = self._client.reply()
            latency_us = (time.perf_counter_ns() - started_ns) // 1000
            if b"ERROR" in line or line.startswith(b"NOT_STORED"):
                self.done.errors[line.decode("ascii", "replace").strip()] += 1
            self._note(verb, latency_us, sent, received, hit=line.startswith(b"VALUE "))
        return len(requests)

    def _note(self, verb: str, latency_us: int, sent: int, received: int, *, hit: bool) -> None:
        second = self.done.series[verb].setdefault(int(time.time() - self._started_s), Second())
        second.latencies_us[latency_us] += 1
        second.sent += sent
        second.received += received
        second.hits += hit
        counts = self._counts
        place = 3 * self._number
        counts[place] += 1
        counts[place + 1] += sent + received
        counts[place + 2] += latency_us


def _wire_bytes(verb: str, key: str, size: int, found: int | None) -> tuple[int, int]:
    """Return how many bytes a request and its reply have on the wire."""
    if verb == "Sets":
        return len(f"set {key} 0 0 {size}\r\n\r\n") + size, len("STORED\r\n")
    if found is None:
        return len(f"get {key}\r\n"), len("END\r\n")
    return len(f"get {key}\r\n"), len(f"VALUE {key} 0 {found}\r\n\r\nEND\r\n") + found


# What the processes of a run share, handed to each as it starts.
_shared: dict[str, Any] = {}


def _share(barrier: Any, counts: Any) -> None:
    _shared.update(barrier=barrier, counts=counts)


def _process(config: Config, thread: int) -> Done:
    """Be one memtier thread: its clients, from connecting to the last reply."""
    raise_open_files()
    workers = [
        Worker(config, thread * config.clients + client, _shared["counts"])
        for client in range(config.clients)
    ]
    try:
        for worker in workers:
            worker.connect()
            worker.start()
    except OSError as error:
        _shared["barrier"].abort()
        raise ConnectionError(f"{config.server}:{config.port}: {error}") from error
    _shared["barrier"].wait(START_S)
    done = Done(started_s=time.time())
    usage, monotonic = _cpu_s(), time.monotonic()
    for worker in workers:
        worker.begin(done.started_s, done.started_s + (config.test_time or MAX_RUN_S))
    for worker in workers:
        worker.join()
    done.finished_s = time.time()
    done.busy = (_cpu_s() - usage) / (time.monotonic() - monotonic)
    for worker in workers:
        _add(done.series, worker.done.series)
        done.errors.update(worker.done.errors)
        done.lost_connections += worker.done.lost_connections
    return done


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _add(series: Series, other: Series) -> None:
    for verb, seconds in other.items():
        for number, second in seconds.items():
            series[verb].setdefault(number, Second()).add(second)


@dataclass
class Run:
    """One run, or several put together: then the figures are per run."""

    series: Series
    started_s: float
    finished_s: float
    lost_connections: float = 0
    interrupted: bool = False
    runs: int = 1
    seconds: float = 0.0

    def verb(self, name: str) -> Second:
        """Return what a verb did in all seconds."""
        whole = Second()
        for verb in ("Sets", "Gets") if name == "Totals" else (name,):
            for second in self.series.get(verb, {}).values():
                whole.add(second)
        return whole

    def by_second(self, name: str) -> dict[int, Second]:
        """Return what a verb did, by second; Waits do nothing in each of them."""
        numbers = sorted({number for seconds in self.series.values() for number in seconds})
        found = {number: Second() for number in numbers}
        for verb in ("Sets", "Gets") if name == "Totals" else (name,):
            for number, second in self.series.get(verb, {}).items():
                found[number].add(second)
        return found


def run_once(config: Config, number: int) -> tuple[Run, Counter[str], float]:
    """Run once; returns what came of it, the errors, and how busy the busiest process was."""
    clients = config.clients * config.threads
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(config.threads)
    counts: Any = RawArray(ctypes.c_uint64, 3 * clients)
    click.echo(f"[RUN #{number}] Preparing benchmark client...", err=True)
    with context.Pool(config.threads, _share, (barrier, counts)) as pool:
        click.echo(f"[RUN #{number}] Launching threads now...", err=True)
        pending = [pool.apply_async(_process, (config, thread)) for thread in range(config.threads)]
        _show_progress(config, number, pending, counts)
        try:
            done = [one.get() for one in pending]
        except (OSError, threading.BrokenBarrierError) as error:
            raise click.ClickException(f"connection error: {error}") from error
    run = Run(
        {"Sets": {}, "Gets": {}}, min(one.started_s for one in done), max(one.finished_s for one in done)
    )
    run.seconds = run.finished_s - run.started_s
    run.interrupted = not config.test_time and run.seconds >= MAX_RUN_S
    errors: Counter[str] = Counter()
    for one in done:
        _add(run.series, one.series)
        errors.update(one.errors)
        run.lost_connections += one.lost_connections
    return run, errors, max(one.busy for one in done)


def _show_progress(config: Config, number: int, pending: list[AsyncResult[Done]], counts: Any) -> None:
    """Write memtier's progress line until all processes are done."""
    started = time.monotonic()
    last, last_s = (0, 0, 0), started
    while not all(one.ready() for one in pending):
        time.sleep(PROGRESS_S)
        now = time.monotonic()
        ops, moved, latency_us = (sum(counts[place::3]) for place in range(3))
        passed = max(now - started, 1e-9)
        part = passed / config.test_time if config.test_time else ops / (config.requests * len(counts) / 3)
        ops_now, moved_now, latency_now = ops - last[0], moved - last[1], latency_us - last[2]
        click.echo(
            f"[RUN #{number} {min(part, 1):.0%}, {passed:3.0f} secs] {config.threads:2} threads "
            f"{len(counts) // 3:2} conns: {ops:11} ops, {ops_now / (now - last_s):7.0f} "
            f"(avg: {ops / passed:7.0f}) ops/sec, {moved_now / (now - last_s) / 1024:.2f}KB/sec "
            f"(avg: {moved / passed / 1024:.2f}KB/sec), {latency_now / max(ops_now, 1) / 1000:5.2f} "
            f"(avg: {latency_us / max(ops, 1) / 1000:5.2f}) msec latency\r",
            err=True,
            nl=False,
        )
        last, last_s = (ops, moved, latency_us), now
    click.echo("\n", err=True)


def together(runs: list[Run]) -> Run:
    """Return the average of several runs."""
    whole = Run({"Sets": {}, "Gets": {}}, runs[0].started_s, runs[-1].finished_s, runs=len(runs))
    for run in runs:
        # All in one second: seconds of different runs have nothing to do with each other.
        _add(whole.series, {verb: {0: run.verb(verb)} for verb in ("Sets", "Gets")})
        whole.seconds += run.seconds
        whole.lost_connections += run.lost_connections / len(runs)
    return whole


class Report:
    """memtier's tables and JSON."""

    def __init__(self, config: Config, out: IO[Any]) -> None:
        self._config, self._out = config, out
        self.json: dict[str, Any] = {"configuration": config.as_memtier()}

    def head(self) -> None:
        """Write what was run."""
        config = self._config
        amount, what = (
            (config.test_time, "Seconds") if config.test_time else (config.requests, "Requests per client")
        )
        self._line(f"{config.threads:<9} Threads")
        self._line(f"{config.clients:<9} Connections per thread")
        self._line(f"{amount:<9} {what}")
        self.json["run information"] = {
            "Threads": config.threads,
            "Connections per thread": config.clients,
            what: amount,
            "Format version": FORMAT_VERSION,
        }

    def add(self, run: Run, header: str) -> None:
        """Write the table, and the histogram, of one run; keep its JSON."""
        whole = {name: run.verb(name) for name in ("Sets", "Gets", "Waits", "Totals")}
        histograms = {name: one.histogram(HISTOGRAM_DIGITS) for name, one in whole.items()}
        self._table(run, header, whole, histograms)
        section: dict[str, Any] = {
            "Runtime": {
                "Start time": round(run.started_s * 1000),
                "Finish time": round(run.finished_s * 1000),
                "Total duration": round(run.finished_s * 1000) - round(run.started_s * 1000),
                "Time unit": "MILLISECONDS",
                "Interrupted": str(run.interrupted).lower(),
            }
        }
        for name, one in whole.items():
            section[name] = self._figures(run, name, one, histograms[name])
        if not self._config.hide_histogram:
            section |= self._distribution(histograms)
        self.json[header] = section

    def _line(self, text: str = "") -> None:
        self._out.write(text + "\n")

    def _table(self, run: Run, header: str, whole: dict[str, Second], histograms: dict[str, Any]) -> None:
        percentiles = self._config.print_percentiles
        titles = ["Ops/sec", "Hits/sec", "Misses/sec", "Avg. Latency"]
        titles += [f"p{percentile:g} Latency" for percentile in percentiles] + ["KB/sec"]
        widths = [12, 12, 12] + [15] * (1 + len(percentiles)) + [12]
        heads = "".join(f"{title:>{width}} " for title, width in zip(titles, widths, strict=True))
        self._line("\n\n" + header)
        self._line("=" * (9 + sum(width + 1 for width in widths)))
        self._line(f"{'Type':<8} {heads}")
        self._line("-" * (9 + sum(width + 1 for width in widths)))
        for name, one in whole.items():
            histogram = histograms[name]
            hits, misses = one.hits / run.seconds, _misses(whole["Gets"]) / run.seconds
            counted = name in {"Gets", "Totals"}
            words = [f"{one.count / run.seconds:.2f}"]
            words += [f"{hits:.2f}", f"{misses:.2f}"] if counted else ["---", "---"]
            if one.count or name == "Totals":
                words.append(f"{histogram.get_mean_value() / 1000:.5f}")
                words += [f"{histogram.get_value_at_percentile(part) / 1000:.5f}" for part in percentiles]
            else:
                words += ["---"] * (1 + len(percentiles))
            words.append(
                "---" if name == "Waits" else f"{(one.sent + one.received) / 1024 / run.seconds:.2f}"
            )
            self._line(
                f"{name:<8} "
                + "".join(f"{word:>{width}} " for word, width in zip(words, widths, strict=True))
            )

    def _figures(self, run: Run, name: str, one: Second, histogram: Any) -> dict[str, Any]:
        seconds, count = run.seconds, one.count
        counted = name in {"Gets", "Totals"}
        average_ms = round(one.total_us / count / 1000, 3) if count else 0.0
        lost = run.lost_connections if name == "Totals" else 0
        return {
            "Count": round(count / run.runs),
            "Ops/sec": round(count / seconds, 2),
            "Hits/sec": round(one.hits / seconds, 2) if counted else 0.0,
            "Misses/sec": round(_misses(run.verb("Gets")) / seconds, 2) if counted else 0.0,
            "Connection Errors/sec": round(lost * run.runs / seconds, 2),
            "Connection Errors": round(lost),
            "Latency": average_ms,
            "Average Latency": average_ms,
            "Accumulated Latency": one.total_us // 1000 // run.runs,
            "Min Latency": min(one.latencies_us, default=0) / 1000,
            "Max Latency": max(one.latencies_us, default=0) / 1000,
            "KB/sec": round((one.sent + one.received) / 1024 / seconds, 2),
            "KB/sec RX/TX": round((one.sent + one.received) / 1024 / seconds, 2),
            "KB/sec RX": round(one.received / 1024 / seconds, 2),
            "KB/sec TX": round(one.sent / 1024 / seconds, 2),
            "Time-Serie": {
                str(number): self._second(second)
                for number, second in (run.by_second(name) if run.runs == 1 else {}).items()
            },
            "Percentile Latencies": self._percentiles(histogram)
            | {"Histogram log format": {"Compressed Histogram": histogram.encode().decode()}},
        }

    def _second(self, second: Second) -> dict[str, Any]:
        figures: dict[str, Any] = {
            "Bytes RX": second.received,
            "Bytes TX": second.sent,
            "Count": second.count,
        }
        if second.count:
            figures |= {
                "Average Latency": round(second.total_us / second.count / 1000, 3),
                "Accumulated Latency": second.total_us // 1000,
                "Min Latency": min(second.latencies_us) / 1000,
                "Max Latency": max(second.latencies_us) / 1000,
            } | self._percentiles(second.histogram(SECOND_DIGITS))
        return figures

    def _percentiles(self, histogram: Any) -> dict[str, float]:
        # memtier cuts the name of a percentile off after six characters: p50.00, p99.90, p100.0.
        return {
            f"p{part:.3f}"[:6]: histogram.get_value_at_percentile(part) / 1000
            for part in self._config.print_percentiles
        }

    def _distribution(self, histograms: dict[str, Any]) -> dict[str, Any]:
        self._line("\n\nRequest Latency Distribution")
        self._line(f"{'Type':<6} {'<= msec   ':>12} {'Percent':>12}")
        self._line("-" * 72)
        found: dict[str, Any] = {}
        for name, verb in {"Sets": "SET", "Gets": "GET", "Waits": "WAIT"}.items():
            found[verb] = []
            if histograms[name].get_total_count():
                for point in histograms[name].get_percentile_iterator(TICKS_PER_HALF):
                    milliseconds = round(point.value_iterated_to / 1000, 3)
                    percent = round(point.percentile_level_iterated_to, 3)
                    self._line(f"{verb:<6} {milliseconds:8.3f} {percent:12.3f}")
                    found[verb].append({"<=msec": milliseconds, "percent": percent})
            if verb != "WAIT":
                self._line("---")
        return found


def _misses(gets: Second) -> int:
    return gets.count - gets.hits


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
    """Return how many requests; -1 for allkeys."""
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
    """Have the command know, and refuse, what memtier can and this cannot."""
    for name in UNSUPPORTED + UNSUPPORTED_FLAGS:
        names = [f"--{name}", *filter(None, [SHORT.get(name)])]
        flag = name in UNSUPPORTED_FLAGS
        command.params.append(
            click.Option(names, is_flag=flag, hidden=True, expose_value=False, callback=_refuse)
        )
    return command


SIZE = click.IntRange(1, 1 << 30)
COUNT = click.IntRange(1, 20_000)
KEY = click.IntRange(0, 1_000_000_000)


@_unsupported
@click.command(help=__doc__, context_settings={"help_option_names": ["--help"], "max_content_width": 120})
@click.option(
    "-s", "-h", "--server", "--host", metavar="ADDR", default="127.0.0.1", show_default=True, type=loopback
)
@click.option("-p", "--port", default=22133, show_default=True, type=click.IntRange(1, 65535))
@click.option(
    "-P", "--protocol", metavar="PROTOCOL", default="memcache_text", show_default=True, type=_protocol
)
@click.option("-x", "--run-count", default=1, show_default=True, type=click.IntRange(1, 1000))
@click.option("-D", "--debug", is_flag=True, help="Print each kind of error.")
@click.option(
    "-o", "--out-file", type=click.Path(dir_okay=False), help="Name of output file (default: stdout)."
)
@click.option("--json-out-file", type=click.Path(dir_okay=False), help="Name of JSON output file.")
@click.option("--show-config", is_flag=True, help="Print detailed configuration before running.")
@click.option("--hide-histogram", is_flag=True, help="Do not print the latency distribution.")
@click.option(
    "--print-percentiles", metavar="LIST", default="50,99,99.9", show_default=True, type=_percentile_list
)
@click.option("--print-all-runs", is_flag=True, help="Print each of several runs.")
@click.option(
    "-n",
    "--requests",
    metavar="NUMBER",
    type=_request_count,
    help="Per client, or allkeys.  [default: 10000]",
)
@click.option("-c", "--clients", default=50, show_default=True, type=COUNT, help="Per thread.")
@click.option("-t", "--threads", default=4, show_default=True, type=click.IntRange(1, 256))
@click.option(
    "--test-time", default=0, type=click.IntRange(0, 86_400), help="Seconds, instead of --requests."
)
@click.option("--ratio", default="1:1", show_default=True, type=ratio, help="Set:Get ratio.")
@click.option("--pipeline", default=1, show_default=True, type=click.IntRange(1, 10_000))
@click.option("--connection-timeout", default=0, type=click.IntRange(0, 3600), help="Seconds; 0: 60.")
@click.option("--distinct-client-seed", is_flag=True, help="A different random seed for each client.")
@click.option("--randomize", is_flag=True, help="Random seed based on timestamp.")
@click.option("-d", "--data-size", default=32, show_default=True, type=SIZE, help="Bytes of an item.")
@click.option("-R", "--random-data", is_flag=True, help="Items of random letters.")
@click.option(
    "--data-size-range",
    metavar="RANGE",
    default="0-0",
    type=_size_range,
    help="Items of random size, min-max.",
)
@click.option("--key-prefix", default="memtier-", show_default=True)
@click.option("--key-minimum", default=1, show_default=True, type=KEY)
@click.option("--key-maximum", default=1, show_default=True, type=KEY)
@click.option(
    "--key-pattern",
    metavar="PATTERN",
    default="R:R",
    show_default=True,
    type=_pattern,
    help="Set:Get, each of R G S P.",
)
@click.option("--key-stddev", default=0.0, type=click.FloatRange(0), help="Of G.  [default: key range / 6]")
@click.option("--key-median", default=0.0, type=click.FloatRange(0), help="Of G.  [default: the center]")
def main(requests: int | None, **options: Any) -> None:
    """Run memtier's way."""
    config = Config(requests=_requests(requests, options), **options)
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


def _requests(requests: int | None, options: dict[str, Any]) -> int:
    """Return how many requests each client sends; 0 if a time says when to stop."""
    if requests and options["test_time"]:
        raise click.UsageError("--test-time and --requests are mutually exclusive.")
    if options["key_minimum"] > options["key_maximum"]:
        raise click.UsageError("key-maximum must not be smaller than key-minimum.")
    if requests == -1:
        keys: int = options["key_maximum"] - options["key_minimum"] + 1
        clients = options["clients"] * options["threads"]
        requests = keys // clients + 1 if options["key_pattern"] == "P:P" else keys
        click.echo(f"setting requests to {requests}", err=True)
    return 0 if options["test_time"] else requests or REQUESTS


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
    """Say so if a process, or the machine with all of them and the server, was the limit."""
    if busy >= BUSY:
        limit = f"a process of it was {busy:.0%} busy"
    elif machine_busy >= BUSY:
        limit = f"all cores were busy ({machine_busy:.0%}), and it took them from the server"
    else:
        return
    click.echo(f"This client was the limit: {limit}. The server may be faster: see raw.py.", err=True)


if __name__ == "__main__":
    main()
