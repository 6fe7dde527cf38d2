"""The command line: the options of the server, and the commands."""

import importlib
from pathlib import Path
from typing import Any

import click

from darner import __version__
from darner.cli import serving
from darner.cli.outcome import exit_on_error
from darner.config.config_file import load
from darner.server import signals

# Where each command is, under the headings of the help. They are loaded when they are asked for: a server has
# no use for what they import.
COMMANDS = {
    "Commands that look at servers": {
        "peek": "darner.cli.peeking:peek",
        "ping": "darner.cli.asking:ping",
        "queues": "darner.cli.listing:queues",
        "stats": "darner.cli.asking:stats",
        "top": "darner.cli.top:top",
    },
    "Commands that steer": {
        "configure": "darner.cli.steering:configure",
        "delete": "darner.cli.steering:delete",
        "flush": "darner.cli.steering:flush",
        "status": "darner.cli.steering:status",
    },
    "Commands that carry items": {
        "export": "darner.cli.exporting:export",
        "get": "darner.cli.items:get",
        "import": "darner.cli.exporting:import_",
        "move": "darner.cli.moving:move",
        "put": "darner.cli.items:put",
    },
    "Programs that go on": {
        "serve": "darner.cli.main:serve",
        "web": "darner.cli.showing:web",
        "work": "darner.work.command:work",
    },
    "Commands for this machine": {
        "backup": "darner.cli.backing_up:backup",
        "check": "darner.cli.repairing:check",
        "completion": "darner.cli.completion:completion",
        "migrate": "darner.cli.migrating:migrate",
        "passwd": "darner.cli.users:passwd",
        "repair": "darner.cli.repairing:repair",
    },
}
_PLACES = {name: place for group in COMMANDS.values() for name, place in group.items()}


class _Serving(click.Command):
    """A command whose help has the options of the server in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections of options."""
        records = {param.name: param.get_help_record(ctx) for param in self.get_params(ctx)}
        for title, names in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([record for name in names if (record := records.pop(name, None))])
        if rest := [record for record in records.values() if record]:
            with formatter.section("Other options"):
                formatter.write_dl(rest)


class _Main(_Serving, click.Group):
    """The group of all commands."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for; errors and Ctrl-C end it as `exit_on_error` says."""
        with exit_on_error():
            return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections of options, and those of commands."""
        super().format_options(ctx, formatter)
        for title, names in COMMANDS.items():
            commands = [(name, command) for name in names if (command := self.get_command(ctx, name))]
            with formatter.section(title):
                formatter.write_dl([(name, command.get_short_help_str(80)) for name, command in commands])

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names of all commands."""
        return sorted(_PLACES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Return a command."""
        module, _, name = _PLACES.get(cmd_name, "").partition(":")
        command: click.Command | None = getattr(importlib.import_module(module), name) if module else None
        return command


GROUPS = {
    "Where": ("data", "store", "host", "port", "socket"),
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
  other commands have more: darner COMMAND --help

A setting is looked for on the command line, then in the configuration file; docs/darner.toml has them all.
"""


SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(
    cls=_Main,
    invoke_without_command=True,
    epilog=EPILOG,
    context_settings=SETTINGS,
)
@click.option(
    "-d",
    "--data",
    type=click.Path(),
    metavar="DIR",
    help="Directory of the queues, made if missing.  [default: data]",
)
@click.option(
    "--store",
    metavar="URLS",
    help="The NATS cluster that keeps the queues in place of --data: nats://a:4222,b:4222,c:4222.",
)
@click.option(
    "--host",
    metavar="ADDRESS",
    multiple=True,
    help="Address to listen on; * is every one. May be given several times.  [default: 127.0.0.1]",
)
@click.option("-p", "--port", type=int, metavar="PORT", help="Port to listen on.  [default: 22133]")
@click.option("--socket", type=click.Path(), metavar="PATH", help="Unix socket to listen on as well.")
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
def main(context: click.Context, /, **options: Any) -> None:
    """Serve durable message queues to memcache clients.

    Without a command the server runs until a signal ends it. A client's set puts an item on a queue,
    get takes the next one off.
    """
    if context.invoked_subcommand == "serve":
        context.default_map = {"serve": options}
    elif context.invoked_subcommand is not None:
        signals.unblock()
    else:
        _serve(**options)


def _serve(*, config_path: Path | None, check_config: bool, **options: Any) -> None:
    """Serve until a signal ends it, or check the configuration."""
    if check_config:
        signals.unblock()
    if check_config and config_path is None:
        raise click.UsageError("--check-config needs --config FILE")
    overrides = {key: value for key, value in options.items() if value not in (None, ())}
    if check_config:
        serving.check_config(config_path, load(config_path, overrides))
    else:
        serving.run_server(config_path, overrides)


serve = _Serving(
    "serve",
    callback=_serve,
    params=[param for param in main.params if param.name != "version"],
    help="Serve until a signal ends it, as darner does without a command.",
    epilog=EPILOG,
    context_settings=SETTINGS,
)
