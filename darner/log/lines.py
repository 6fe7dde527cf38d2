"""How events become lines on standard error: darner's own, and what other packages log."""

import logging
import os
import sys
from typing import Any

import structlog

from darner.log import console
from darner.printable import printable

STDERR = 2

_STAMP = structlog.processors.TimeStamper(fmt="iso")
_FIRST = ("timestamp", "level", "event")
_LOGFMT = structlog.processors.LogfmtRenderer(key_order=_FIRST)
_JSON = structlog.processors.JSONRenderer()


def _render_json(logger: Any, method: str, event: structlog.typing.EventDict) -> str:
    """Return an event as one JSON object, its keys in the order of the other forms."""
    return str(_JSON(logger, method, {key: event[key] for key in (*_FIRST, *event) if key in event}))


class _Line(str):
    """A finished line of the log."""

    __slots__ = ()


class _Renderer:
    """The last processor: it makes the line of an event, as `key=value` or JSON for programs, or in columns
    for people."""

    def __init__(self) -> None:
        self._render: structlog.typing.Processor = _LOGFMT

    def choose(self, form: str) -> None:
        is_terminal = os.isatty(STDERR)
        if form == "console" or (form == "auto" and is_terminal):
            self._render = console.renderer(colors=is_terminal and console.wants_colors(os.environ))
        else:
            self._render = _render_json if form == "json" else _LOGFMT

    def __call__(self, logger: Any, method: str, event: structlog.typing.EventDict) -> _Line:
        return _Line(self._render(logger, method, event))


_RENDER = _Renderer()


class _Logger(structlog.stdlib.BoundLogger):
    """A logger that has the traceback of an exception in the event, where logging would write it behind."""

    def exception(self, event: str | None = None, *args: object, **fields: object) -> object:
        return self.error(event, *args, exc_info=True, **fields)


def _make_printable(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Escape all that a terminal or a reader of lines would obey. A traceback keeps its lines."""
    for key, value in event.items():
        if key == "exception":
            event[key] = "\n".join(map(printable, str(value).split("\n")))
        elif value is not None and not isinstance(value, bool | int | float):
            event[key] = printable(str(value))
    return event


class _Formatter(logging.Formatter):
    """A formatter that gives what other packages log by themselves (asyncio, for one) the form of structlog's
    events, which come as finished lines."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if isinstance(record.msg, _Line):
            return text
        event = {"level": record.levelname.lower(), "event": text, "logger": record.name}
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return _line(_make_printable(None, "", event))


def _line(event: structlog.typing.EventDict) -> str:
    return str(_RENDER(None, "", _STAMP(None, "", event)))


def set_up_log() -> None:
    """Log to standard error, one line for each event, from level info on."""
    _RENDER.choose("auto")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.add_log_level,
            _STAMP,
            structlog.processors.format_exc_info,
            _make_printable,
            _RENDER,
        ],
        wrapper_class=_Logger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def choose_log_format(form: str) -> None:
    """Write lines in this form from now on: `logfmt`, `json` (an object a line), `console` (columns), or
    `auto`, which is columns at a terminal, else logfmt."""
    _RENDER.choose(form)


def dropped_lines(count: int) -> str:
    """Return the line that says how many lines of the log were dropped, because they were not read."""
    event = {"level": "warning", "event": "lines of the log dropped: standard error was not read"}
    return f"{_line({**event, 'lines': count})}\n"
