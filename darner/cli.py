"""The command line, and nothing else."""

import logging
import os
import sys
from pathlib import Path

import click
import structlog

from darner import __version__, auth, config, repair
from darner.errors import DarnerError
from darner.server import read_access, serve


def set_up_log(*, debug: bool) -> None:
    """Log to standard error, one line an event, `key=value`; `verbosity` changes the level later."""
    logging.basicConfig(
        stream=sys.stderr, format="%(message)s", level=logging.DEBUG if debug else logging.INFO
    )
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-d", "--data", metavar="DIR", help="Directory of the queues, made if missing.  [default: data]"
)
@click.option("--host", metavar="ADDRESS", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("-p", "--port", type=int, metavar="PORT", help="Port to listen on.  [default: 22133]")
@click.option(
    "-c", "--config", "config_path", type=click.Path(path_type=Path), metavar="FILE",
    help="Configuration file (TOML); options given here come before it.",
)  # fmt: skip
@click.option("--check-config", is_flag=True, help="Say whether the configuration file is right, and exit.")
@click.option("--debug", is_flag=True, default=None, help="Log debug messages.")
@click.version_option(__version__, "-v", "--version", message="%(version)s")
@click.pass_context
def main(
    context: click.Context,
    data: str | None,
    host: str | None,
    port: int | None,
    config_path: Path | None,
    *,
    check_config: bool,
    debug: bool | None,
) -> None:
    """Serve durable message queues to memcache clients."""
    if context.invoked_subcommand is not None:
        return
    if check_config and config_path is None:
        raise click.UsageError("--check-config needs --config FILE")
    options = {"data": data, "host": host, "port": port, "debug": debug}
    given = {key: value for key, value in options.items() if value is not None}
    try:
        settings = config.load(config_path, given)
        if check_config:
            read_access(settings)
            click.echo(f"{config_path} is fine: {settings.summary()}")
            return
        set_up_log(debug=settings.debug)
        serve(settings, lambda: config.load(config_path, given))
    except DarnerError as error:
        click.echo(f"darner: {error}", err=True)
        sys.exit(1)


@main.command(short_help="Set the password of a user.")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("user")
def passwd(file: Path, user: str) -> None:
    """Set the password of USER in FILE, the auth_file of the configuration; either is made if missing.

    Asks for the password; if standard input is no terminal, reads it from there, up to the line end. The
    server takes it over when it is told to reload (SIGHUP).
    """
    try:
        auth.check_name(user)
        if sys.stdin.isatty():
            password = click.prompt("Password", hide_input=True, confirmation_prompt=True).encode()
        else:
            password = sys.stdin.buffer.readline().rstrip(b"\r\n")
        is_new = auth.set_password(file, user, password)
    except DarnerError as error:
        click.echo(f"darner: {error}", err=True)
        sys.exit(1)
    if is_new:
        click.echo(f"{user} is new, and may read, write and manage every queue: change that in {file}")


@main.command(short_help="Look for damage in queues.")
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("queue", required=False)
def check(data: Path, queue: str | None) -> None:
    """Read all of the data directory DATA, or of its queue QUEUE, and say of each queue whether it is whole.

    No server may have it. Nothing is changed. The exit status is 0 if all is well. What the server has put
    aside since it was damaged is said, and no fault: the queue is whole without it.
    """
    is_whole = True
    try:
        for report in repair.check(data, None if queue is None else os.fsencode(queue)):
            is_whole &= not report.problems
            text = "; ".join(report.problems) or f"ok, items={report.items} bytes={report.bytes}"
            click.echo(f"{report.where}: {text}")
            if report.note:
                click.echo(f"{report.where}: {report.note}")
    except DarnerError as error:
        click.echo(f"darner: {error}", err=True)
        is_whole = False
    if not is_whole:
        sys.exit(1)


@main.command("repair", short_help="Rebuild a damaged queue from what is left.")
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("queue")
def repair_(data: Path, queue: str) -> None:
    """Rebuild QUEUE in the data directory DATA from what is left of it, and say what is lost.

    No server may have it. The damaged directory is kept beside, as .damaged-QUEUE-1.
    """
    try:
        repaired = repair.repair(data, os.fsencode(queue))
    except DarnerError as error:
        click.echo(f"darner: {error}", err=True)
        sys.exit(1)
    for text in repaired.losses:
        click.echo(f"{queue}: {text}")
    figures = f"items={repaired.items} bytes={repaired.bytes}"
    if repaired.damaged is None:
        click.echo(f"{queue}: ok, nothing to repair, {figures}")
        return
    click.echo(f"{queue}: repaired, {figures}")
    click.echo(f"{queue}: the damaged directory is {repaired.damaged}; delete it when it is of no more use")
