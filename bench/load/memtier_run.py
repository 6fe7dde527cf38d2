"""One run of memtier.py: processes with clients in threads, and what each verb did in each second."""

import ctypes
import multiprocessing
import random
import string
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.pool import AsyncResult
from multiprocessing.sharedctypes import RawArray
from typing import Any

import click
from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped,unused-ignore]
from pymemcache.client.base import Client  # type: ignore[import-untyped,unused-ignore]
from pymemcache.exceptions import MemcacheError  # type: ignore[import-untyped,unused-ignore]

from load.raw import own_cpu_s, raise_open_files

# memtier's histograms: from 10 us to 100 minutes.
HISTOGRAM_US = (10, 6_000_000_000)
START_S = 60.0
PROGRESS_S = 0.2
REPLY_S = 60.0
# A run that was given no time ends by itself after so long.
MAX_RUN_S = 3600.0


@dataclass(frozen=True)
class Config:
    """The options, by memtier's names."""

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
        """Return memtier's "configuration"; what cannot be set here has memtier's default."""
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
    """The requests of one verb in one second."""

    latencies_us: Counter[int] = field(default_factory=Counter)
    received: int = 0
    sent: int = 0
    hits: int = 0

    def add(self, other: "Second") -> None:
        """Add the requests of another second."""
        self.latencies_us.update(other.latencies_us)
        self.received += other.received
        self.sent += other.sent
        self.hits += other.hits

    @property
    def count(self) -> int:
        """The number of requests."""
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
    """The requests, the time and the errors of one process."""

    series: Series = field(default_factory=lambda: {"Sets": {}, "Gets": {}})
    started_s: float = 0.0
    finished_s: float = 0.0
    busy: float = 0.0
    lost_connections: int = 0
    errors: Counter[str] = field(default_factory=Counter)


class Pipeline(Client):  # type: ignore[misc,unused-ignore]
    """A pymemcache client that can send several requests at once."""

    def connect(self) -> None:
        """Connect at once, and not at the first request."""
        self._connect()
        self.replies = self.sock.makefile("rb")

    def reply(self) -> tuple[bytes, int]:
        """Read one reply; return its first line and its size in bytes."""
        line: bytes = self.replies.readline()
        size = len(line)
        if line.startswith(b"VALUE "):
            rest = int(line.split()[3]) + len(b"\r\nEND\r\n")
            size += len(self.replies.read(rest))
        elif not line:
            raise ConnectionError("the server closed the connection")
        return line, size


class Keys:
    """The keys of one client, in the order of its key pattern."""

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
    """One client: its connection, its requests and their results."""

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
        """Let the client send until this time at most."""
        self._started_s, self._end_s = started_s, end_s
        self._begin.set()

    def run(self) -> None:
        """Send requests until all are answered or the time is up."""
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
    """Return the bytes of a request and of its reply on the wire."""
    if verb == "Sets":
        return len(f"set {key} 0 0 {size}\r\n\r\n") + size, len("STORED\r\n")
    if found is None:
        return len(f"get {key}\r\n"), len("END\r\n")
    return len(f"get {key}\r\n"), len(f"VALUE {key} 0 {found}\r\n\r\nEND\r\n") + found


# The barrier and the counters that the processes of a run share; each gets them as it starts.
_shared: dict[str, Any] = {}


def _share(barrier: Any, counts: Any) -> None:
    _shared.update(barrier=barrier, counts=counts)


def _process(config: Config, thread: int) -> Done:
    """Run the clients of one memtier thread, from connecting to the last reply."""
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
    usage, monotonic = own_cpu_s(), time.monotonic()
    for worker in workers:
        worker.begin(done.started_s, done.started_s + (config.test_time or MAX_RUN_S))
    for worker in workers:
        worker.join()
    done.finished_s = time.time()
    done.busy = (own_cpu_s() - usage) / (time.monotonic() - monotonic)
    for worker in workers:
        _add(done.series, worker.done.series)
        done.errors.update(worker.done.errors)
        done.lost_connections += worker.done.lost_connections
    return done


def _add(series: Series, other: Series) -> None:
    for verb, seconds in other.items():
        for number, second in seconds.items():
            series[verb].setdefault(number, Second()).add(second)


@dataclass
class Run:
    """The results of one run, or of several; then its figures are per run."""

    series: Series
    started_s: float
    finished_s: float
    lost_connections: float = 0
    interrupted: bool = False
    runs: int = 1
    seconds: float = 0.0

    def verb(self, name: str) -> Second:
        """Return the requests of a verb, of all seconds."""
        whole = Second()
        for verb in ("Sets", "Gets") if name == "Totals" else (name,):
            for second in self.series.get(verb, {}).values():
                whole.add(second)
        return whole

    def by_second(self, name: str) -> dict[int, Second]:
        """Return the requests of a verb by second; of Waits there are none."""
        numbers = sorted({number for seconds in self.series.values() for number in seconds})
        found = {number: Second() for number in numbers}
        for verb in ("Sets", "Gets") if name == "Totals" else (name,):
            for number, second in self.series.get(verb, {}).items():
                found[number].add(second)
        return found


def run_once(config: Config, number: int) -> tuple[Run, Counter[str], float]:
    """Run once; return the results, the errors, and how busy the busiest process was."""
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
    """Write memtier's progress line until all processes have ended."""
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
