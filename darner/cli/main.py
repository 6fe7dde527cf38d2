"""The command line, and nothing else."""

import atexit
import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import click
import structlog

from darner import __version__
from darner.access import auth
from darner.cli import console
from darner.config.settings import Settings, load
from darner.errors import DarnerError, RepairError
from darner.printable import printable, shown
from darner.repair import check as checks
from darner.repair import repair
from darner.server import signals, standard
from darner.server.server import check_start, serve

_STAMP = structlog.processors.TimeStamper(fmt="iso")
_LOGFMT = structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"])


class _Renderer:
    """Makes the text of an event: `key=value` for programs, or columns for people."""

    def __init__(self) -> None:
        self._render: structlog.typing.Processor = _LOGFMT

    def choose(self, form: str) -> None:
        """Take this form from now on, one of LogFormat: `auto` is columns at a terminal."""
        is_terminal = os.isatty(standard.STDERR)
        if form == "console" or (form == "auto" and is_terminal):
            self._render = console.renderer(colors=is_terminal and console.wants_colors(os.environ))
        else:
            self._render = _LOGFMT

    def __call__(self, logger: Any, method: str, event: structlog.typing.EventDict) -> Any:
        return self._render(logger, method, event)


_RENDER = _Renderer()


class _Logger(structlog.stdlib.BoundLogger):
    """Has the traceback of an exception in the line about it, where logging itself would let it follow."""

    def exception(self, event: str | None = None, *args: object, **fields: object) -> object:
        return self.error(event, *args, exc_info=True, **fields)


def _make_printable(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Let nothing into the log that a terminal, or who reads lines, obeys. A traceback keeps its lines."""
    for key, value in event.items():
        if key == "exception":
            event[key] = "\n".join(map(printable, str(value).split("\n")))
        elif value is not None and not isinstance(value, bool | int | float):
            event[key] = printable(str(value))
    return event


class _Formatter(logging.Formatter):
    """Has what others log (asyncio, for one) written as what darner does, which comes as it is to be."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.name.partition(".")[0] in ("darner", "__main__"):
            return text
        event = {"level": record.levelname.lower(), "event": text, "logger": record.name}
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return str(_RENDER(None, "", _make_printable(None, "", _STAMP(None, "", event))))


def set_up_log(*, debug: bool) -> None:
    """Log to standard error, one line an event; `verbosity` changes the level later."""
    _RENDER.choose("auto")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    logging.basicConfig(handlers=[handler], level=logging.DEBUG if debug else logging.INFO)
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


def _dropped(lines: int) -> str:
    """The line that says how many of the log there was no room for."""
    event = {"level": "warning", "event": "lines of the log dropped: standard error was not read"}
    return f"{_RENDER(None, '', _STAMP(None, '', {**event, 'lines': lines}))}\n"


def _serve(config_path: Path | None, given: dict[str, Any]) -> None:
    """Serve until a signal says stop. Raises ConfigError or StartError if the server cannot start."""
    writer = standard.replace_stderr(_dropped)
    atexit.register(writer.drain)
    set_up_log(debug=False)

    def end(name: str) -> NoReturn:
        # nobody was promised anything yet, and what the start was about is found by the next one as after a
        # kill
        structlog.get_logger().info("closed before it was up", signal=name)
        writer.drain()
        os._exit(0)

    watch = signals.Watch(end)
    settings = load(config_path, given)
    _RENDER.choose(settings.log_format)
    if settings.debug:
        logging.getLogger().setLevel(logging.DEBUG)
    serve(settings, lambda: load(config_path, given), watch)


class _Errors(logging.Handler):
    """Counts what is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.count = 0
        set_up_log(debug=False)
        logging.getLogger().addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002
        """Take note of one."""
        self.count += 1


def _say(text: str, *, err: bool = False) -> None:
    click.echo(printable(text), err=err)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Say an error in one line, and exit with status 1."""
    try:
        yield
    except DarnerError as error:
        _say(f"darner: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        where = "" if error.filename is None else f": {os.fsdecode(error.filename)}"
        _say(f"darner: {error.strerror or error}{where}", err=True)
        sys.exit(1)


class _Main(click.Group):
    """Its help has the options in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the groups of options, and the commands."""
        records = {param.name: param.get_help_record(ctx) for param in self.get_params(ctx)}
        for title, names in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([record for name in names if (record := records.pop(name, None))])
        if rest := [record for record in records.values() if record]:
            with formatter.section("Other options"):
                formatter.write_dl(rest)
        self.format_commands(ctx, formatter)


GROUPS = {
    "Where": ("data", "host", "port", "socket"),
    "Configuration": ("config_path", "check_config"),
    "Log, on standard error": ("log_format", "debug"),
}

EPILOG = """\b
Examples:
  darner                                      queues in ./data, on 127.0.0.1:22133
  darner -d /var/lib/darner --host 10.0.0.5 --host ::1
  darner -d /var/lib/darner --socket /run/darner/darner.sock
  darner -c darner.toml --check-config        what is wrong with that file, if anything
  printf 'set work 0 0 5\\r\\nhello\\r\\nget work\\r\\nquit\\r\\n' | nc 127.0.0.1 22133

\b
Signals:
  TERM, INT   end cleanly: what was asked for is answered first; a second one ends at once
  HUP         read the configuration, certificates and users again

\b
Exit status:
  0   ended by a signal or by the command shutdown; for other commands: nothing is wrong
  1   could not start, or was ended at once; something is wrong, and was said
  2   the command line is wrong

A setting is looked for on the command line, then in the configuration file; docs/darner.toml has them all.
"""


@click.group(
    cls=_Main,
    invoke_without_command=True,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "-d", "--data", metavar="DIR", help="Directory of the queues, made if missing.  [default: data]"
)
@click.option(
    "--host",
    metavar="ADDRESS",
    multiple=True,
    help="Address to listen on; * is every one. May be given several times.  [default: 127.0.0.1]",
)
@click.option("-p", "--port", type=int, metavar="PORT", help="Port to listen on.  [default: 22133]")
@click.option("--socket", metavar="PATH", help="Unix socket to listen on, besides.")
@click.option(
    "-c", "--config", "config_path", type=click.Path(path_type=Path), metavar="FILE",
    help="Configuration file (TOML); options given here come before it.",
)  # fmt: skip
@click.option("--check-config", is_flag=True, help="Say whether the configuration file is right, and exit.")
@click.option(
    "--log-format",
    type=click.Choice(["auto", "logfmt", "console"]),
    metavar="FORMAT",
    help="Columns for people (console), key=value for programs (logfmt), or what fits where it goes (auto)."
    "  [default: auto]",
)
@click.option("--debug", is_flag=True, default=None, help="Log debug messages.")
@click.version_option(__version__, "-v", "--version", message="%(version)s")
@click.pass_context
def main(
    context: click.Context,
    data: str | None,
    host: tuple[str, ...],
    port: int | None,
    socket: str | None,
    config_path: Path | None,
    *,
    check_config: bool,
    debug: bool | None,
    log_format: str | None,
) -> None:
    """Serve durable message queues to memcache clients.

    Without a command the server runs until a signal ends it. A client's set puts an item on a queue,
    get takes the next one off.
    """
    if context.invoked_subcommand is not None or check_config:
        signals.give_back()
    if context.invoked_subcommand is not None:
        return
    if check_config and config_path is None:
        raise click.UsageError("--check-config needs --config FILE")
    options = {
        "data": data,
        "host": host or None,
        "port": port,
        "socket": socket,
        "debug": debug,
        "log_format": log_format,
    }
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    with _refusals():
        if check_config:
            _check_config(config_path, load(config_path, given))
        else:
            _serve(config_path, given)


def _check_config(path: Path | None, settings: Settings) -> None:
    errors = _Errors()
    found = list(check_start(settings))
    for error in found:
        _say(f"darner: {error}", err=True)
    if found or errors.count:
        sys.exit(1)
    _say(f"{path} is fine: {settings.summary()}")


@main.command(short_help="Set the password of a user.")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("user")
def passwd(file: Path, user: str) -> None:
    """Set the password of USER in FILE, the auth_file of the configuration; either is made if missing.

    Asks for the password; if standard input is no terminal, reads it from there, up to the line end. The
    server takes it over when it is told to reload (SIGHUP).

    \b
    Example:
      darner passwd users.toml alice
    """
    with _refusals():
        auth.check_name(user)
        if sys.stdin.isatty():
            password = click.prompt("Password", hide_input=True, confirmation_prompt=True).encode()
        else:
            password = sys.stdin.buffer.readline().rstrip(b"\r\n")
        is_new = auth.set_password(file, user, password)
    if is_new:
        _say(f"{user} is new, and may read, write and manage every queue: change that in {file}")


@main.command(short_help="Look for damage in queues.")
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("queue", required=False)
def check(data: Path, queue: str | None) -> None:
    """Read all of the data directory DATA, or of its queue QUEUE, and say of each queue whether it is whole.

    Says what a server would say of it, too: whether it can be used, what is wrong with the log, and, on
    standard error, what it would warn of. No server may have it. Nothing is changed. The exit status is 0 if
    nothing is wrong. What a server has put aside since it was damaged is said, and nothing wrong: the queue
    is whole without it.

    \b
    Examples:
      darner check /var/lib/darner
      darner check /var/lib/darner work
    """
    errors = _Errors()
    failed = can_be_repaired = False
    with _refusals():
        for report in checks.check(data, None if queue is None else os.fsencode(queue)):
            failed |= bool(report.problems)
            can_be_repaired |= report.is_repairable
            text = "; ".join(report.problems) or f"ok, items={report.items} bytes={report.bytes}"
            _say(f"{report.where}: {text}")
    if can_be_repaired:
        _say("darner: darner repair DATA QUEUE saves what is left of a queue, --all of each", err=True)
    if failed or errors.count:
        sys.exit(1)


@main.command("repair", short_help="Rebuild damaged queues from what is left.")
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("queue", required=False)
@click.option("--all", "all_", is_flag=True, help="Repair every queue that needs it.")
def repair_(data: Path, queue: str | None, *, all_: bool) -> None:
    """Rebuild QUEUE in the data directory DATA from what is left of it, and say what is lost.

    No server may have it. The damaged directory is kept beside, as .damaged-QUEUE-1. The exit status is 0 if
    all is whole then.

    \b
    Examples:
      darner repair /var/lib/darner work
      darner repair /var/lib/darner --all
    """
    if all_ == (queue is not None):
        raise click.UsageError("give the name of a queue, or --all")
    set_up_log(debug=False)
    failed = False
    with _refusals():
        if queue is not None:
            name = os.fsencode(queue)
            _say_repaired(name, repair.repair(data, name))
            return
        for name, outcome in repair.repair_all(data):
            if isinstance(outcome, RepairError):
                failed = True
                _say(f"{shown(name)}: {outcome}", err=True)
            else:
                _say_repaired(name, outcome)
    if failed:
        sys.exit(1)


def _say_repaired(name: bytes, repaired: repair.Repaired) -> None:
    queue, figures = shown(name), f"items={repaired.items} bytes={repaired.bytes}"
    if repaired.damaged is None:
        _say(f"{queue}: ok, nothing to repair, {figures}")
        return
    for text in repaired.losses:
        _say(f"{queue}: {text}")
    _say(f"{queue}: repaired, {figures}")
    _say(f"{queue}: the damaged directory is {repaired.damaged}; delete it when it is of no more use")
