"""The command `darner web`: the page."""

import asyncio
import importlib
import os
import ssl
from pathlib import Path

import click

from darner.cli.connecting import SETTINGS
from darner.cli.outcome import say
from darner.errors import StartError
from darner.log.lines import choose_log_format, set_up_log
from darner.work.server_option import DEFAULT_SERVER

PORT = 22180

EPILOG = """\b
Examples:
  darner web                                        the server on this machine, at http://127.0.0.1:22180/
  darner web darner://10.0.0.5 darner://10.0.0.6    two servers on one page
  darner web --allow-changes                        with put, move, flush and delete
  darner web --listen 10.0.0.9:443 --login logins --tls-cert page.pem

A login is user:password, a line each, in the file of --login or in DARNER_WEB_LOGIN; a password has at
least 12 characters. Without one only this machine can look, and everybody on it.

\b
Exit status:
  0   ended by a signal
  1   could not start, and why was said
  2   the command line is wrong
"""


@click.command(
    epilog=EPILOG, short_help="Show servers and their queues in a browser.", context_settings=SETTINGS
)
@click.argument("servers", nargs=-1, metavar="[URL]...", envvar="DARNER_URL")
@click.option("--listen", default=f"127.0.0.1:{PORT}", show_default=True, metavar="HOST:PORT",
              help="Where browsers find the page; port 0 is any.")  # fmt: skip
@click.option("--allow-changes", is_flag=True, help="Let whoever sees the page put, move, flush and delete.")
@click.option(
    "--login",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Who may look: user:password, a line each.",
)
@click.option("--name", "names", multiple=True, metavar="HOST",
              help="A name by which browsers call the page, say behind a proxy.")  # fmt: skip
@click.option(
    "--tls-cert",
    type=click.Path(exists=True),
    metavar="FILE",
    help="Certificate of the page: then it is https.",
)
@click.option(
    "--tls-key", type=click.Path(exists=True), metavar="FILE", help="Its key, if it is not in the same file."
)
@click.option(
    "--tls-ca", type=click.Path(exists=True), metavar="FILE", help="Whose certificates of servers to trust."
)
@click.option("--log-format", type=click.Choice(["auto", "logfmt", "console", "json"]), default="auto",
              metavar="FORMAT", help="Form of the lines on standard error.")  # fmt: skip
def web(
    servers: tuple[str, ...],
    listen: str,
    login: Path | None,
    names: tuple[str, ...],
    tls_cert: str | None,
    tls_key: str | None,
    tls_ca: str | None,
    log_format: str,
    *,
    allow_changes: bool,
) -> None:
    """Show servers and their queues in a browser: what is wrong, what waits, what each queue is like.

    URL is darner://user:password@host:port, darners:// for TLS, or darner+unix:///path. Else DARNER_URL has
    them.
    """
    for needed in ("aiohttp", "jinja2"):
        try:
            importlib.import_module(needed)
        except ImportError:
            say("darner: the page needs aiohttp and jinja2: pip install 'darner[web]'", err=True)
            raise SystemExit(1) from None
    from darner.web.logins import read_logins  # noqa: PLC0415
    from darner.web.server import Settings, serve  # noqa: PLC0415

    host, _, port = listen.rpartition(":")
    if not (host and port.isdigit() and int(port) < 1 << 16):
        raise click.UsageError(f"--listen {listen}: HOST:PORT")
    set_up_log()
    choose_log_format(log_format)
    try:
        settings = Settings(
            servers=servers or (DEFAULT_SERVER,),
            listen=(host.strip("[]"), int(port)),
            logins=read_logins(login, os.environ.get("DARNER_WEB_LOGIN", "")),
            names=names,
            allows_changes=allow_changes,
            tls=ssl.create_default_context(cafile=tls_ca) if tls_ca else None,
            own_tls=_own_tls(tls_cert, tls_key),
        )
    except ssl.SSLError as error:
        raise StartError(f"{tls_cert or tls_ca}: {error}") from None
    asyncio.run(serve(settings))


def _own_tls(cert: str | None, key: str | None) -> ssl.SSLContext | None:
    if cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    return context
