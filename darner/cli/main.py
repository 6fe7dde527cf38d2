"""The command line: the options of the server, and the commands."""

from pathlib import Path
from typing import Any

import click

from darner import __version__
from darner.cli import repairing, serving, users
from darner.cli.outcome import exit_on_error
from darner.config.config_file import load
from darner.server import signals


class _Main(click.Group):
    """The group of all commands, whose help has the options of the server in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections of options, and the commands."""
        records = {param.name: param.get_help_record(ctx) for param in self.get_params(ctx)}
        for title, names in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([record for name in names if (record := records.pop(name, None))])
        if rest := [record for record in records.values() if record]:
            with formatter.section("Other options"):
                formatter.write_dl(rest)
        self.format_commands(ctx, formatter)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted([*super().list_commands(ctx), "work"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command."""
        if cmd_name == "work":
            # not at the top: a server has no use for the worker and the client
            from darner.work.command import work  # noqa: PLC0415

            return work
        return super().get_command(ctx, cmd_name)


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
  TERM, INT   end cleanly: requests that have come are answered first; a second one ends at once
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
@click.option("--socket", metavar="PATH", help="Unix socket to listen on as well.")
@click.option(
    "-c", "--config", "config_path", type=click.Path(path_type=Path), metavar="FILE",
    help="Configuration file (TOML); options given here take precedence.",
)  # fmt: skip
@click.option("--check-config", is_flag=True, help="Say whether the configuration file is right, and exit.")
@click.option(
    "--log-format",
    type=click.Choice(["auto", "logfmt", "console", "json"]),
    metavar="FORMAT",
    help="Columns for people (console), key=value (logfmt) or JSON (json) for programs; auto: console at a"
    " terminal, else logfmt.  [default: auto]",
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
        signals.unblock()
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
    overrides: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    with exit_on_error():
        if check_config:
            serving.check_config(config_path, load(config_path, overrides))
        else:
            serving.run_server(config_path, overrides)


for _command in (users.passwd, repairing.check, repairing.repair):
    main.add_command(_command)
