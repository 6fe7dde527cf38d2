"""The figures of the server and of each queue: the command `stats` replies with them, and metrics.py gives
them to Prometheus.
"""

import os
import resource
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

from darner._records import ITEM_BYTES, Histogram
from darner._version import __version__
from darner.printable import shown
from darner.queues.broker import Broker
from darner.queues.cursor import cursor_lags
from darner.queues.queue import Queue
from darner.wire.clients import Clients
from darner.wire.figure import Figure, StoreFigures, read


def _seconds(seconds: float) -> str:
    """Return seconds as memcached writes them, to the microsecond."""
    return f"{seconds:.6f}"


SERVER_FIGURES: tuple[Figure[Clients], ...] = (
    Figure("pid", lambda _: os.getpid()),
    Figure(
        "uptime", lambda clients: int(clients.uptime_s()),
        "darner_uptime_seconds", "How long the server has been up.",
    ),
    Figure(
        "time", lambda _: int(time.time()),
        "darner_time_seconds", "The server's clock, since the Unix epoch.",
    ),
    Figure("version", lambda _: __version__),
    Figure("status", lambda clients: clients.broker.status.name),
    Figure(
        "curr_items", lambda clients: clients.broker.totals.waiting()[1],
        "darner_items", "Items that wait in all queues; reserved ones do not.",
    ),
    Figure(
        "total_items", lambda clients: clients.broker.totals.items,
        "darner_stored_items_total", "Items stored in all queues, those deleted since too.",
    ),
    Figure(
        "bytes", lambda clients: clients.broker.totals.waiting()[2],
        "darner_item_bytes", "Bytes of the items that wait in all queues.",
    ),
    Figure(
        "curr_connections", lambda clients: len(clients.connections),
        "darner_connections", "Clients that are connected.",
    ),
    Figure(
        "total_connections", lambda clients: clients.counters.total_connections,
        "darner_accepted_connections_total", "Clients that have connected.",
    ),
    Figure(
        "cmd_get", lambda clients: clients.counters.cmd_get,
        "darner_gets_total", "Fetches that were answered, with an item or without.",
    ),
    Figure(
        "cmd_set", lambda clients: clients.counters.cmd_set,
        "darner_sets_total", "Sets, refused ones too.",
    ),
    Figure(
        "cmd_peek", lambda clients: clients.counters.cmd_peek,
        "darner_peeks_total", "Looks at the head of a queue.",
    ),
    Figure(
        "get_hits", lambda clients: clients.counters.get_hits,
        "darner_get_hits_total", "Fetches that were answered with an item.",
    ),
    Figure(
        "get_misses", lambda clients: clients.counters.get_misses,
        "darner_get_misses_total", "Fetches that were answered without an item.",
    ),
    Figure(
        "bytes_read", lambda clients: clients.counters.bytes_read,
        "darner_read_bytes_total", "Bytes received from clients.",
    ),
    Figure(
        "bytes_written", lambda clients: clients.counters.bytes_written,
        "darner_written_bytes_total", "Bytes sent to clients.",
    ),
    Figure(
        "queue_creates", lambda clients: clients.broker.totals.queue_creates,
        "darner_queues_created_total", "Queues made.",
    ),
    Figure(
        "queue_deletes", lambda clients: clients.broker.totals.queue_deletes,
        "darner_queues_deleted_total", "Queues deleted.",
    ),
    Figure(
        "queue_expires", lambda clients: clients.broker.totals.queue_expires,
        "darner_queues_expired_total", "Queues that ended by their max_queue_age.",
    ),
    Figure(
        "noreply_errors", lambda clients: clients.counters.noreply_errors,
        "darner_noreply_errors_total", "Errors that the client's noreply hid from it.",
    ),
    Figure(
        "queues_out_of_service", lambda clients: len(clients.broker.out_of_service),
        "darner_queues_out_of_service", "Queues that cannot be opened or were set aside: see the log.",
    ),
    Figure(
        "rejected_connections", lambda clients: clients.counters.rejected_connections,
        "darner_rejected_connections_total", "Clients that were turned away: there were too many.",
    ),
    Figure(
        "cmd_flush", lambda clients: clients.counters.cmd_flush,
        "darner_flushes_total", "Flushes, of one queue or of all.",
    ),
    Figure(
        "cmd_meta", lambda clients: clients.counters.cmd_meta,
        "darner_meta_commands_total", "Meta commands (mg ms md mn me); what they did is counted as well.",
    ),
    Figure(
        "delete_hits", lambda clients: clients.counters.delete_hits,
        "darner_delete_hits_total", "Deletes of what was there.",
    ),
    Figure(
        "delete_misses", lambda clients: clients.counters.delete_misses,
        "darner_delete_misses_total", "Deletes of what was not there.",
    ),
    Figure(
        "auth_cmds", lambda clients: clients.counters.auth_cmds,
        "darner_logins_total", "Logins, failed ones too.",
    ),
    Figure(
        "auth_errors", lambda clients: clients.counters.auth_errors,
        "darner_failed_logins_total", "Logins that failed.",
    ),
    Figure(
        "conn_yields", lambda clients: clients.counters.conn_yields,
        "darner_connection_yields_total", "Turns that ended before all that a client had sent was served.",
    ),
)  # fmt: skip

# What monitoring agents made for memcached look for besides. What means nothing here is 0.
AGENT_FIGURES: tuple[Figure[Clients], ...] = (
    Figure("pointer_size", lambda _: 8 * struct.calcsize("P")),
    Figure("rusage_user", lambda _: _seconds(resource.getrusage(resource.RUSAGE_SELF).ru_utime)),
    Figure("rusage_system", lambda _: _seconds(resource.getrusage(resource.RUSAGE_SELF).ru_stime)),
    Figure("max_connections", lambda clients: clients.max_connections),
    Figure("connection_structures", lambda clients: len(clients.connections)),
    Figure("accepting_conns", lambda _: 1),
    # one serves all requests
    Figure("threads", lambda _: 1),
    # agents take the difference to `bytes` for the free space
    Figure(
        "limit_maxbytes",
        lambda clients: clients.broker.totals.waiting()[2] + clients.broker.bytes_for_items,
    ),
    # nobody had fetched them: a full queue discarded them, or they expired
    Figure("evictions", lambda clients: clients.broker.totals.discarded_items),
    Figure("evicted_unfetched", lambda clients: clients.broker.totals.discarded_items),
    Figure("expired_unfetched", lambda clients: clients.broker.totals.expired_items),
    *(
        Figure(name, lambda _: 0)
        for name in (
            "listen_disabled_num", "time_in_listen_disabled_us", "reserved_fds", "reclaimed", "cmd_touch",
            "touch_hits", "touch_misses", "incr_hits", "incr_misses", "decr_hits", "decr_misses",
            "cas_hits", "cas_misses", "cas_badval", "get_expired", "get_flushed", "hash_bytes",
            "hash_is_expanding", "hash_power_level", "total_malloced", "direct_reclaims",
            "lru_crawler_starts", "crawler_items_checked", "crawler_reclaimed", "moves_to_cold",
            "moves_to_warm", "moves_within_lru",
        )
    ),
)  # fmt: skip

QUEUE_FIGURES: tuple[Figure[Queue], ...] = (
    Figure(
        "items", lambda queue: queue.items,
        "darner_queue_items", "Items that wait; reserved ones do not.",
    ),
    Figure(
        "bytes", lambda queue: queue.waiting_bytes,
        "darner_queue_item_bytes", "Bytes of the items that wait.",
    ),
    Figure(
        "total_items", lambda queue: queue.counts.total_items,
        "darner_queue_stored_items_total", "Items stored.",
    ),
    # it looks at a directory: too slow to be a metric
    Figure("logsize", lambda queue: queue.journal.disk_bytes),
    Figure(
        "expired_items", lambda queue: queue.counts.expired_items,
        "darner_queue_expired_items_total", "Items that expired before they were fetched.",
    ),
    Figure(
        "mem_items", lambda queue: len(queue.window),
        "darner_queue_memory_items", "Items that wait in memory, too.",
    ),
    Figure(
        "mem_bytes", lambda queue: queue.window.bytes - len(queue.window) * ITEM_BYTES,
        "darner_queue_memory_bytes", "Bytes of the items that wait in memory, too.",
    ),
    Figure(
        "age", lambda queue: queue.age_ms,
        "darner_queue_age_seconds", "How long the item fetched last had waited; 0 if none waits.", 1e-3,
    ),
    Figure(
        "head_age", lambda queue: queue.head_age_ms,
        "darner_queue_head_age_seconds", "How long the item at the head has waited; 0 if none waits.", 1e-3,
    ),
    Figure(
        "discarded", lambda queue: queue.counts.discarded,
        "darner_queue_discarded_items_total", "Items dropped unread since the queue was full.",
    ),
    Figure(
        "duplicates", lambda queue: queue.counts.duplicates,
        "darner_queue_duplicate_sets_total", "Sets that were sent again, and not stored again.",
    ),
    Figure(
        "damaged_items", lambda queue: queue.journal.damaged_items,
        "darner_queue_damaged_items_total", "Items lost to damage on the disk; what is left of them is kept.",
    ),
    Figure(
        "waiters", lambda queue: queue.waiting_clients,
        "darner_queue_waiters", "Clients that wait for an item.",
    ),
    Figure(
        "open_transactions", lambda queue: len(queue.reserved),
        "darner_queue_open_transactions", "Items that are reserved.",
    ),
    Figure(
        "transactions", lambda queue: queue.counts.transactions,
        "darner_queue_transactions_total", "Fetches with /open.",
    ),
    Figure(
        "canceled_transactions", lambda queue: queue.counts.canceled_transactions,
        "darner_queue_canceled_transactions_total", "Reserved items that came back.",
    ),
    Figure(
        "total_flushes", lambda queue: queue.counts.total_flushes,
        "darner_queue_flushes_total", "Flushes.",
    ),
    Figure(
        "create_time", lambda queue: queue.journal.state.created_ms,
        "darner_queue_create_time_seconds", "When the queue was made, since the Unix epoch.", 1e-3,
    ),
    Figure(
        "delayed_items", lambda queue: queue.delayed_items,
        "darner_queue_delayed_items", "Items that are out of sight until they are due.",
    ),
    Figure(
        "max_items", lambda queue: queue.settings.max_items or 0,
        "darner_queue_max_items", "How many items may wait; 0 is no limit.",
    ),
    Figure(
        "max_bytes", lambda queue: queue.settings.max_bytes or 0,
        "darner_queue_max_bytes", "How many bytes may wait; 0 is no limit.",
    ),
)  # fmt: skip

# What `stats` does not have: its names are Kestrel's and memcached's.
STATE_FIGURES: tuple[Figure[Clients], ...] = (
    Figure(
        "", lambda clients: len(clients.broker.queue_names),
        "darner_queues", "Queues that are served.",
    ),
    Figure(
        "", lambda clients: clients.max_connections,
        "darner_connections_limit", "How many clients may be connected.",
    ),
    Figure(
        "", lambda clients: clients.broker.status.level,
        "darner_status", "The status that was asked for: 0 up, 1 readonly, 2 quiescent.",
    ),
)  # fmt: skip

# How long what takes how long.
DURATIONS: tuple[tuple[str, str, Callable[[Clients], Histogram]], ...] = (
    (
        "darner_reply_seconds",
        "From the reading of requests to the sending of their replies; one in 8 reads of each client.",
        lambda clients: clients.reply_times or Histogram(),
    ),
    (
        "darner_loop_lag_seconds", "How late the event loop came to what was due, four times a second.",
        lambda clients: clients.loop_lags,
    ),
)  # fmt: skip

CURSOR_LAG: Figure[int] = Figure(
    "lag", lambda lag: lag, "darner_queue_cursor_lag_items", "Items that a cursor has still to read."
)


LEVELDB_STATE: tuple[Figure[Broker], ...] = (
    Figure(
        "", lambda broker: int(broker.space.refusal is not None),
        "darner_disk_full", "1 while sets are refused, since too little of the disk is free.",
    ),
    Figure(
        "", lambda broker: int(broker.storage.log.segment.refusal is not None),
        "darner_log_refusing", "1 while the write-ahead log takes nothing in.",
    ),
    Figure(
        "", lambda broker: broker.bytes_for_items,
        "darner_disk_free_bytes", "Bytes that are free for items: without min_free_space.",
    ),
    Figure(
        "", lambda broker: broker.storage.log.bytes,
        "darner_log_bytes", "Bytes on the disk of the write-ahead log, as far as it is needed.",
    ),
    Figure(
        "", lambda broker: broker.storage.committer.staged_bytes,
        "darner_staged_bytes", "Bytes in memory and in the log that LevelDB has still to get.",
    ),
    Figure(
        "", lambda broker: broker.storage.committer.failing_journals,
        "darner_queues_failing", "Queues whose LevelDB could not be written: they take nothing in.",
    ),
    Figure(
        "", lambda broker: broker.storage.committer.writes.failures,
        "darner_commit_failures_total", "Commits to LevelDB that failed, those tried again too.",
    ),
    Figure(
        "", lambda broker: broker.storage.syncs.failures,
        "darner_log_sync_failures_total", "Syncs of the write-ahead log that failed.",
    ),
    Figure(
        "", lambda broker: broker.storage.committer.compactions.failures,
        "darner_compaction_failures_total", "Compactions that failed.",
    ),
)  # fmt: skip

LEVELDB_DURATIONS: tuple[tuple[str, str, Callable[[Broker], Histogram]], ...] = (
    (
        "darner_log_sync_seconds", "Syncs of the write-ahead log, which /sync waits for.",
        lambda broker: broker.storage.syncs.durations,
    ),
    (
        "darner_commit_seconds", "Commits of one queue's changes to its LevelDB, synced; no client waits.",
        lambda broker: broker.storage.committer.writes.durations,
    ),
    (
        "darner_compaction_seconds", "Compactions of one queue's LevelDB; no client waits.",
        lambda broker: broker.storage.committer.compactions.durations,
    ),
)  # fmt: skip

# Those of the queues of a data directory.
LEVELDB_FIGURES = StoreFigures(QUEUE_FIGURES, cursor_lags, LEVELDB_STATE, LEVELDB_DURATIONS)


def read_queue(clients: Clients, queue: Any) -> Iterator[tuple[str, int | str]]:
    """Give the name and the value of each figure of a queue and its cursors."""
    figures = clients.figures
    yield from read(figures.queue, queue)
    for label, lag in figures.cursor_lags(queue):
        yield f"cursor_{shown(label)}_{CURSOR_LAG.name}", lag
