"""Running a server, and checking the configuration of one."""

import atexit
import logging
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import structlog

from darner.cli.outcome import ErrorCount, say
from darner.config.config_file import load
from darner.config.settings import Settings
from darner.log.lines import choose_log_format, dropped_lines, set_up_log
from darner.server import log_writer
from darner.server.preflight import check_start
from darner.server.server import serve
from darner.server.signals import SignalWatch


def run_server(config_path: Path | None, overrides: dict[str, Any]) -> None:
    """Serve until a signal says stop. Raises ConfigError or StartError if the server cannot start."""
    writer = log_writer.replace_stderr(dropped_lines)
    atexit.register(writer.drain)
    set_up_log()

    def end(name: str) -> NoReturn:
        # nothing is acknowledged yet, and the next start finds what this one was doing as after a kill
        structlog.get_logger().info("closed before it was up", signal=name)
        writer.drain()
        os._exit(0)

    signals = SignalWatch(end)
    settings = load(config_path, overrides)
    choose_log_format(settings.log_format)
    if settings.debug:
        logging.getLogger().setLevel(logging.DEBUG)
    serve(settings, lambda: load(config_path, overrides), signals)


def check_config(path: Path | None, settings: Settings) -> None:
    """Say what would keep a server with these settings from starting, and exit with status 1; or that
    nothing would."""
    logged = ErrorCount()
    found = list(check_start(settings))
    for error in found:
        say(f"darner: {error}", err=True)
    if found or logged.count:
        sys.exit(1)
    say(f"{path} is fine: {settings.summary()}")
