"""The figures of `stats`, typed. Times are in seconds, where the wire has milliseconds."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import unquote

# What the wire has in milliseconds.
_IN_MILLISECONDS = frozenset(("age", "head_age", "create_time"))
# What servers of a fleet have each for themselves: of several, the greatest stands for all. Other numbers are
# added up.
_NOT_ADDED = frozenset(("pid", "uptime", "time", "age", "head_age", "create_time"))


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStats:
    """The figures of one queue, as docs/protocol.md has them. Others are in `extra`, as text."""

    name: str
    items: int = 0
    bytes: int = 0
    total_items: int = 0
    logsize: int = 0
    expired_items: int = 0
    mem_items: int = 0
    mem_bytes: int = 0
    # how long the item fetched last had waited, and how long the one at the head has waited, in seconds
    age: float = 0
    head_age: float = 0
    discarded: int = 0
    damaged_items: int = 0
    delayed_items: int = 0
    duplicates: int = 0
    waiters: int = 0
    open_transactions: int = 0
    transactions: int = 0
    canceled_transactions: int = 0
    total_flushes: int = 0
    # what it may have; 0 is no limit
    max_items: int = 0
    max_bytes: int = 0
    # seconds of the Unix epoch
    create_time: float = 0
    # why the queue is out of service, and then it has no other figures; else empty
    out_of_service: str = ""
    # of each cursor, the items that it has still to read
    cursor_lags: dict[str, int] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStats:
    """The figures of a server, or of a fleet, added up. Others are in `extra`, as text."""

    version: str = ""
    # what clients may do: up, readonly or quiescent
    status: str = ""
    pid: int = 0
    # seconds; the server's clock, of the Unix epoch
    uptime: int = 0
    time: int = 0
    curr_items: int = 0
    total_items: int = 0
    bytes: int = 0
    # those bytes and what the disk has left for items
    limit_maxbytes: int = 0
    curr_connections: int = 0
    total_connections: int = 0
    rejected_connections: int = 0
    cmd_get: int = 0
    cmd_set: int = 0
    cmd_peek: int = 0
    cmd_flush: int = 0
    get_hits: int = 0
    get_misses: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    queue_creates: int = 0
    queue_deletes: int = 0
    queue_expires: int = 0
    queues_out_of_service: int = 0
    noreply_errors: int = 0
    extra: dict[str, str] = field(default_factory=dict)


_QUEUE_FIGURES = {each.name for each in fields(QueueStats)} - {"name", "cursor_lags", "extra"}
_SERVER_FIGURES = {each.name for each in fields(ServerStats)} - {"extra"}
_CURSOR_LAG = re.compile(r"cursor_(.+)_lag")
# Either is the first figure of a queue.
_FIRST_FIGURES = ("_items", "_out_of_service")


def server_stats(lines: Iterable[tuple[str, str]]) -> ServerStats:
    """Return the figures of a server from the reply to `stats`; those of its queues are left out."""
    known: dict[str, Any] = {}
    extra = {}
    for name, text in lines:
        if name in _SERVER_FIGURES:
            known[name] = text if name in ("version", "status") else _number(text)
        elif not (name.startswith("queue_") and name.count("_") > 1):
            extra[name] = text
    return ServerStats(**known, extra=extra)


def queue_stats(lines: Iterable[tuple[str, str]]) -> dict[str, QueueStats]:
    """Return the figures of each queue, by its name, from the reply to `stats queues`."""
    found: dict[str, QueueStats] = {}
    figures: dict[str, str] = {}
    prefix = ""
    for key, text in lines:
        if not key.startswith("queue_"):
            continue
        figure = key.removeprefix(prefix) if prefix and key.startswith(prefix) else ""
        # A name may have underscores. So a queue begins where a line is no figure of the queue before it, or
        # one that this queue has already; its first figure is `items`, or why it is out of service.
        if not _is_figure(figure) or figure in figures:
            first = next((each for each in _FIRST_FIGURES if key.endswith(each)), "")
            if prefix and not first:
                figures[figure] = text  # a figure that this client does not know
                continue
            _add(found, prefix, figures)
            figure = (first or _FIRST_FIGURES[0]).removeprefix("_")
            prefix, figures = key.removesuffix(figure), {}
        figures[figure] = text
    _add(found, prefix, figures)
    return found


def both(lines: Sequence[tuple[str, str]]) -> tuple[ServerStats, dict[str, QueueStats]]:
    """Return the figures of a server and of its queues from the reply to `stats`, which may list no queue."""
    # `queue_creates` and the like are figures of the server
    return server_stats(lines), queue_stats(line for line in lines if line[0].count("_") > 1)


def _is_figure(figure: str) -> bool:
    return figure in _QUEUE_FIGURES or _CURSOR_LAG.fullmatch(figure) is not None


def _add(found: dict[str, QueueStats], prefix: str, figures: dict[str, str]) -> None:
    if not prefix:
        return
    # bytes that are no printable ASCII came percent-encoded
    name = unquote(prefix.removeprefix("queue_").removesuffix("_"), errors="surrogateescape")
    known: dict[str, Any] = {}
    lags, extra = {}, {}
    for figure, text in figures.items():
        if figure == "out_of_service":
            known[figure] = unquote(text, errors="replace")
        elif figure in _QUEUE_FIGURES:
            known[figure] = _number(text) / 1000 if figure in _IN_MILLISECONDS else _number(text)
        elif lag := _CURSOR_LAG.fullmatch(figure):
            lags[unquote(lag[1], errors="surrogateescape")] = _number(text)
        else:
            extra[figure] = text
    found[name] = QueueStats(name=name, **known, cursor_lags=lags, extra=extra)


def _number(text: str) -> int:
    return int(text) if text.lstrip("-").isdigit() else 0


def merged_servers(parts: Sequence[ServerStats]) -> ServerStats:
    """Return the figures of a fleet. `version` is the lowest, `status` that of the first which is not up."""
    if len(parts) == 1:
        return parts[0]
    version = min(part.version for part in parts)
    status = next((part.status for part in parts if part.status != "up"), "up")
    return ServerStats(**_merged(parts), version=version, status=status)


def merged_queues(parts: Sequence[dict[str, QueueStats]]) -> dict[str, QueueStats]:
    """Return the figures of each queue in a fleet. Those of cursors are added up, too."""
    if len(parts) == 1:
        return parts[0]
    merged = {}
    for name in sorted({name for part in parts for name in part}):
        same = [part[name] for part in parts if name in part]
        lags: dict[str, int] = {}
        for stats in same:
            for cursor, lag in stats.cursor_lags.items():
                lags[cursor] = lags.get(cursor, 0) + lag
        reason = next((stats.out_of_service for stats in same if stats.out_of_service), "")
        merged[name] = QueueStats(name=name, **_merged(same), cursor_lags=lags, out_of_service=reason)
    return merged


def _merged(parts: Sequence[Any]) -> dict[str, Any]:
    """Return the numbers of several servers as one; `extra` is of the first that has a figure."""
    merged: dict[str, Any] = {"extra": {}}
    for part in reversed(parts):
        merged["extra"].update(part.extra)
    for each in fields(parts[0]):
        numbers = [getattr(part, each.name) for part in parts]
        if isinstance(numbers[0], int | float):
            merged[each.name] = max(numbers) if each.name in _NOT_ADDED else sum(numbers)
    return merged
