"""The option that names servers: of the worker, and of the commands that speak to servers."""

import click

DEFAULT_SERVER = "darner://127.0.0.1:22133"

server_option = click.option(
    "-s",
    "--server",
    "servers",
    multiple=True,
    metavar="URL",
    envvar="DARNER_URL",
    default=[DEFAULT_SERVER],
    show_default=True,
    help="Server, as host:port, darner://user:password@host:port, darners:// for TLS, or"
    " darner+unix:///path. May be given several times. Else from DARNER_URL, which `ps` does not show.",
)
