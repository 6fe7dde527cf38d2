"""The log for people at a terminal: one line for each event, in columns, in local time; a traceback follows
in lines of its own."""

import json
from collections.abc import Mapping

from structlog import dev
from structlog.processors import TimeStamper
from structlog.types import EventDict, Processor, WrappedLogger

# Most events are shorter, so the fields behind them begin in the same column.
EVENT_WIDTH = 28
LEVELS = {"debug": dev.DIM, "info": dev.GREEN, "warning": dev.YELLOW, "error": dev.RED}


def wants_colors(environment: Mapping[str, str]) -> bool:
    """Return whether a terminal with this environment has colours, and its user wants them: see
    no-color.org."""
    return not environment.get("NO_COLOR") and environment.get("TERM", "dumb") != "dumb"


def renderer(*, colors: bool) -> Processor:
    """Return the processor that makes the line of an event."""
    style = _style if colors else lambda _: ""
    reset = style(dev.RESET_ALL)
    stamp = TimeStamper(fmt="%b %d %H:%M:%S", utc=False)
    render = dev.ConsoleRenderer(
        sort_keys=False,
        exception_formatter=dev.plain_traceback,
        columns=[
            dev.Column("timestamp", dev.KeyValueColumnFormatter(None, style(dev.DIM), reset, str)),
            dev.Column(
                "level",
                dev.LogLevelColumnFormatter({level: style(code) for level, code in LEVELS.items()}, reset),
            ),
            dev.Column(
                "event", dev.KeyValueColumnFormatter(None, style(dev.BRIGHT), reset, str, width=EVENT_WIDTH)
            ),
            dev.Column("", dev.KeyValueColumnFormatter(style(dev.CYAN), "", reset, _value)),
        ],
    )

    def line(logger: WrappedLogger, method: str, event: EventDict) -> str:
        return str(render(logger, method, stamp(logger, method, event))).rstrip()

    return line


def _style(code: str) -> str:
    return code


def _value(value: object) -> str:
    """Return the text of a value, in quotes if its end could not be told otherwise."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or set(text) & set(' "=') else text
