"""The figures of a worker for Prometheus, over HTTP. They need prometheus_client, the extra `metrics`.

One process serves them for the whole worker. If there are others that do the work, they tell it of each job.
So the figures are sums, and a process that dies takes none with it.
"""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    start_http_server,
)

from darner.work.errors import WorkerError

# Jobs take from some milliseconds to some minutes.
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900)


class Metrics:
    """The observer that counts, and the port on which Prometheus reads the figures."""

    def __init__(self, host: str, port: int) -> None:
        """Listen and serve; port 0 lets the system choose. Raises WorkerError if it cannot listen there."""
        registry = CollectorRegistry()
        self._jobs = Counter(
            "darner_worker_jobs", "Jobs that have ended, by how.", ["queue", "outcome"], registry=registry
        )
        self._in_progress = Gauge(
            "darner_worker_jobs_in_progress", "Jobs that run now.", ["queue"], registry=registry
        )
        self._seconds = Histogram(
            "darner_worker_job_seconds", "How long jobs ran.", ["queue"], buckets=BUCKETS_S, registry=registry
        )
        ProcessCollector(registry=registry)
        try:
            self._http, _ = start_http_server(port, host, registry)
        except (OSError, OverflowError) as error:
            raise WorkerError(f"metrics cannot be served on {host} port {port}: {error}") from error
        self.port: int = self._http.server_port

    def note_start(self, queue: str) -> None:
        """Take note that a job has begun."""
        self._in_progress.labels(queue).inc()

    def note_end(self, queue: str, outcome: str, seconds: float) -> None:
        """Take note that a job has ended."""
        self._in_progress.labels(queue).dec()
        self._seconds.labels(queue).observe(seconds)
        self._jobs.labels(queue, outcome).inc()

    def close(self) -> None:
        """Serve no more."""
        self._http.shutdown()
        self._http.server_close()
