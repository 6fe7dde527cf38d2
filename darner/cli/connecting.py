"""What a command needs that speaks to servers: the options that name them, clients, names of queues, and what
an error tells whoever ran it."""

import contextlib
import functools
import math
import os
import ssl
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

import click

from darner.cli.outcome import INTERRUPTED, exit_on_error, say
from darner.client import protocol, url
from darner.client.client import Client
from darner.client.errors import BadRequestError, ConnectionFailedError
from darner.errors import NoQueueError
from darner.work.server_option import server_option

# Exit statuses of these commands, besides those that all have.
UNREACHABLE = 3
NOTHING = 4

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


class Seconds(click.FloatRange):
    """A time in seconds."""

    name = "number of seconds"

    def __init__(self, most: float, *, least: float = 0) -> None:
        super().__init__(least, most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds."""
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):  # no range leaves that out
            self.fail(f"{value!r} is not a valid {self.name}.", param, ctx)
        return seconds


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for each server.")


def server_options(command: Command) -> Command:
    """Add the options that name servers; the command gets a Client of all of them as `client`.

    Errors end it as `saying_errors` says.
    """

    @server_option
    @tls_options
    @functools.wraps(command)
    def run(*args: Any, servers: tuple[str, ...], tls: ssl.SSLContext | None, **options: Any) -> None:
        with saying_errors(), connect(servers, tls) as client:
            command(*args, client=client, **options)

    return run


def each_server_options(command: Command) -> Command:
    """Add the options that name servers; the command gets a Client of each as `clients`, by its address.

    Errors end it as `saying_errors` says.
    """

    @server_option
    @tls_options
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
    """Do as `exit_on_error`; to reach no server, or no such queue there, has a status of its own."""
    with exit_on_error():
        try:
            yield
        except (ConnectionFailedError, NoQueueError) as error:
            say(f"darner: {error}", err=True)
            sys.exit(NOTHING if isinstance(error, NoQueueError) else UNREACHABLE)


def tls_options(run: Command) -> Command:
    """Add the options of TLS; `run` gets `tls`, which is what `connect` takes."""

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
