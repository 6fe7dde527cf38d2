"""The report of memtier.py: memtier_benchmark's tables and JSON."""

from typing import IO, Any

from load.memtier_run import Config, Run, Second

# memtier's histograms have three digits, those of one second two.
HISTOGRAM_DIGITS, SECOND_DIGITS = 3, 2
# Points between one halving of what is left to 100 % and the next.
TICKS_PER_HALF = 10
FORMAT_VERSION = 2


class Report:
    """The tables and the JSON of all runs."""

    def __init__(self, config: Config, out: IO[Any]) -> None:
        self._config, self._out = config, out
        self.json: dict[str, Any] = {"configuration": config.as_memtier()}

    def head(self) -> None:
        """Write the number of threads, connections and requests."""
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
        """Write the table and the histogram of one run, and keep its JSON."""
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
