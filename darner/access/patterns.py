"""Patterns of queue names in permissions: names in which each `*` stands for any run of bytes."""

import re


def compile_patterns(patterns: tuple[str, ...]) -> re.Pattern[bytes]:
    """Return a regular expression that matches the names that one of the patterns matches."""
    any_of = (b".*".join(re.escape(part.encode()) for part in pattern.split("*")) for pattern in patterns)
    # without patterns, one that matches nothing
    return re.compile(b"|".join(any_of) or rb"(?!)", re.DOTALL)


def matches(pattern: re.Pattern[bytes], queue: bytes) -> bool:
    """Return whether a pattern matches the whole name of a queue."""
    return pattern.fullmatch(queue) is not None


def matches_queue_of(pattern: re.Pattern[bytes], name: bytes) -> bool:
    """Return whether a pattern matches the queue of a name, which may have a cursor behind a slash."""
    return matches(pattern, name.partition(b"/")[0])


def parent_of(name: bytes) -> bytes:
    """Return the queue whose child the queue of a name is; b"" if it is no child."""
    parent, plus, _ = name.partition(b"/")[0].partition(b"+")
    return parent if plus else b""
