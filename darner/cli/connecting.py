"""What a command needs that speaks to servers: the options that name them, clients, names of queues, and what
an error tells whoever ran it."""

import contextlib
import functools
import os
import ssl
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

import click

from darner.cli.outcome import say
from darner.client import protocol, url
from darner.client.client import Client
from darner.client.errors import BadRequestError, ConnectionFailedError
from darner.errors import DarnerError

DEFAULT_SERVER = "darner://127.0.0.1:22133"

# Exit statuses, besides 0 and those of click: 2 is a wrong command line.
FAILED = 1
UNREACHABLE = 3
NOTHING = 4
INTERRUPTED = 130

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

Command = Callable[..., None]


def epilog(examples: str, *, nothing: str = "") -> str:
    """Return what stands below the help of a command: examples and exit statuses; `nothing` is that of 4."""
    last = f"\n  4   {nothing}" if nothing else ""
    return f"""\b
Examples:
{examples.strip(chr(10))}

\b
Exit status:
  0   done
  1   refused or failed, and was said
  2   the command line is wrong
  3   a server could not be reached{last}
"""


class QueueName(click.ParamType[str]):
    """The name of a queue, or `QUEUE/cursor=NAME`, as every output has it: with bytes percent-encoded."""

    name = "queue"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name as the client takes it."""
        name = os.fsdecode(unquote_to_bytes(os.fsencode(value)))
        try:
            protocol.source_key(name)
        except BadRequestError as error:
            self.fail(str(error), param, ctx)
        return name


QUEUE = QueueName()

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for each server.")


def server_options(command: Command) -> Command:
    """Add the options that name servers; the command gets a Client of all of them as `client`.

    Errors end it as `saying_errors` says.
    """

    @_options
    @functools.wraps(command)
    def run(*args: Any, servers: tuple[str, ...], tls: ssl.SSLContext | None, **options: Any) -> None:
        with saying_errors(), connect(servers, tls) as client:
            command(*args, client=client, **options)

    return run


def each_server_options(command: Command) -> Command:
    """Add the options that name servers; the command gets a Client of each as `clients`, by its address.

    Errors end it as `saying_errors` says.
    """

    @_options
    @functools.wraps(command)
    def run(*args: Any, servers: tuple[str, ...], tls: ssl.SSLContext | None, **options: Any) -> None:
        with saying_errors(), contextlib.ExitStack() as stack:
            clients: dict[str, Client] = {}
            for server in servers:
                client = stack.enter_context(connect((server,), tls))
                clients[str(url.parse(server))] = client
            command(*args, clients=clients, **options)

    return run


def connect(servers: tuple[str, ...], tls: ssl.SSLContext | None) -> Client:
    """Return a client of servers; nothing is connected yet. A URL that is none is a wrong command line."""
    try:
        are_tls = all(address.is_tls for address in url.parse_all(servers))
        return Client(servers, tls=tls if are_tls else None)
    except BadRequestError as error:
        raise click.UsageError(str(error)) from None


def for_each(clients: Mapping[str, Client], ask: Callable[[str, Client], None]) -> None:
    """Call `ask` with the address and the client of each server. An error is said, and the others are asked
    all the same; it ends the process after the last, with the highest status."""
    worst = 0
    for address, client in clients.items():
        try:
            with saying_errors():
                ask(address, client)
        except SystemExit as end:
            if end.code == INTERRUPTED:
                raise
            worst = max(worst, int(end.code or 0))
    if worst:
        sys.exit(worst)


@contextlib.contextmanager
def saying_errors() -> Iterator[None]:
    """Say an error of the body in one line on standard error, and exit with the status that stands for it.

    Ctrl-C exits with 130, and a standard output that nobody reads any more with 1; nothing is said then.
    """
    try:
        yield
        sys.stdout.flush()
    except ConnectionFailedError as error:
        say(f"darner: {error}", err=True)
        sys.exit(UNREACHABLE)
    except DarnerError as error:
        say(f"darner: {error}", err=True)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # or Python would try to write the rest at its end, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except OSError as error:
        where = "" if error.filename is None else f": {os.fsdecode(error.filename)}"
        say(f"darner: {error.strerror or error}{where}", err=True)
        sys.exit(FAILED)


def _options(run: Command) -> Command:
    """Add the options; `run` gets `servers` and `tls`."""

    @click.option(
        "-s",
        "--server",
        "servers",
        multiple=True,
        metavar="URL",
        envvar="DARNER_URL",
        default=[DEFAULT_SERVER],
        help="Server, as host:port, darner://user:password@host:port, darners:// for TLS, or"
        " darner+unix:///path. May be given several times. Else from DARNER_URL, which `ps` does not show."
        f"  [default: {DEFAULT_SERVER}]",
    )
    @click.option(
        "--tls-ca", metavar="FILE", type=click.Path(exists=True), help="Whose certificates to trust."
    )
    @click.option(
        "--tls-cert", metavar="FILE", type=click.Path(exists=True),
        help="The client's own certificate, if the server asks for one; with its key behind it, or in"
        " --tls-key.",
    )  # fmt: skip
    @click.option(
        "--tls-key", metavar="FILE", type=click.Path(exists=True), help="The key of that certificate."
    )
    @functools.wraps(run)
    def with_tls(
        *args: Any, tls_ca: str | None, tls_cert: str | None, tls_key: str | None, **options: Any
    ) -> None:
        run(*args, tls=_context(tls_ca, tls_cert, tls_key), **options)

    return with_tls


def _context(ca: str | None, cert: str | None, key: str | None) -> ssl.SSLContext | None:
    """Return what TLS goes by; None is the client's default."""
    if not (ca or cert):
        return None
    try:
        context = ssl.create_default_context(cafile=ca)
        if cert:
            context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise click.UsageError(f"{ca or cert}: {error}") from None
    return context
