"""The commands that ask servers how they are: `ping` and `stats`."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from darner.cli.connecting import SETTINGS, each_server_options, epilog, for_each, json_option
from darner.cli.outcome import say
from darner.client.client import Client


@click.command(
    short_help="Say whether a server answers.",
    context_settings=SETTINGS,
    epilog=epilog("""
  darner ping                                 is the server of this machine up?
  darner ping -s db1:22133 -s db2:22133       each of them, and 3 unless all are
  darner ping --quiet || systemctl restart darner
"""),
)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@json_option
@each_server_options
def ping(clients: Mapping[str, Client], *, quiet: bool, as_json: bool) -> None:
    """Ask each server for its version, which takes it no time: for health checks.

    It needs no permission but a login where the server asks for one.
    """

    def ask(address: str, client: Client) -> None:
        begun = time.perf_counter()
        version = client.version()
        seconds = time.perf_counter() - begun
        if as_json:
            say(json.dumps({"server": address, "version": version, "seconds": seconds}))
        elif not quiet:
            say(f"{address}: darner {version}, {seconds * 1000:.1f} ms")

    for_each(clients, ask)


@click.command(
    short_help="Show the figures of a server.",
    context_settings=SETTINGS,
    epilog=epilog("""
  darner stats
  darner stats --json | jq .stats.curr_items
  darner stats -s db1:22133 -s db2:22133      each of them
"""),
)
@json_option
@each_server_options
def stats(clients: Mapping[str, Client], *, as_json: bool) -> None:
    """Show the figures of each server. `darner queues` has those of the queues.

    docs/protocol.md says what each is, under "Statistics". Times are in seconds.
    """

    def ask(address: str, client: Client) -> None:
        found = asdict(client.stats())
        figures: dict[str, Any] = found | found.pop("extra")
        if as_json:
            say(json.dumps({"server": address, "stats": figures}))
            return
        if len(clients) > 1:
            say(f"{address}:")
        for name, figure in figures.items():
            say(f"{name:<25} {figure}")

    for_each(clients, ask)
