"""Settings that contradict each other, though each of them by itself is valid."""

import ipaddress
from collections.abc import Container
from typing import Any

from darner.config.kinds import NAME, NAME_RULE
from darner.config.settings import MOVES, Settings
from darner.config.wrong_value import WrongValueError, quoted


def check(settings: Settings, defaults: dict[str, Any], queues: dict[str, dict[str, Any]]) -> None:
    """Raise WrongValueError if settings contradict each other.

    `defaults` and `queues` are the tables `[queue_defaults]` and `[queues]` of the file itself.
    """
    _check_tls(settings)
    _check_store(settings)
    _check_ports(settings)
    _check_aliases(settings)
    _check_moves(settings.aliases, ("queue_defaults",), defaults)
    for name, table in queues.items():
        check_queue(settings.aliases, name, table)


def _check_tls(settings: Settings) -> None:
    for key, needed in (("tls_cert", "tls_key"), ("tls_key", "tls_cert"), ("tls_ca", "tls_cert")):
        if getattr(settings, key) is not None and getattr(settings, needed) is None:
            raise WrongValueError((key,), f"is of no use without {needed}")


def _check_store(settings: Settings) -> None:
    if settings.store is None:
        for key in ("store_system", "store_ca", "store_cert", "store_key", "store_credentials"):
            if getattr(settings, key) is not None:
                raise WrongValueError((key,), "is of no use without store")
        return
    if settings.aliases:
        name = next(iter(settings.aliases)).decode(errors="surrogateescape")
        raise WrongValueError(("aliases", name), "is an alias, which a cluster (store) does not serve")
    if settings.durability == "synced" and settings.store_system is None:
        raise WrongValueError(
            ("store",),
            "needs store_system, to see that the nodes of the cluster sync what they store; or say "
            'durability = "replicated" if the memory of a majority is enough',
        )


def _check_ports(settings: Settings) -> None:
    port = settings.metrics_port
    if (
        port
        and port == settings.port
        and any(_overlap(host, settings.metrics_host) for host in settings.host)
    ):
        raise WrongValueError(("metrics_port",), f"is {port}, where clients are served; give another")


def _overlap(one: str, other: str) -> bool:
    """Return whether two hosts have, or may have, an address in common."""
    ours, theirs = _addresses(one), _addresses(other)
    # :: accepts IPv4 connections, too
    if "::" in ours | theirs:
        return True
    if "0.0.0.0" in ours | theirs:  # noqa: S104  # compared, not listened on
        return all(any(":" not in address for address in addresses) for addresses in (ours, theirs))
    return not ours.isdisjoint(theirs)


def _addresses(host: str) -> set[str]:
    if host == "*":
        return {"::", "0.0.0.0"}  # noqa: S104
    if host.lower() == "localhost":
        return {"127.0.0.1", "::1"}
    try:
        return {str(ipaddress.ip_address(host))}
    except ValueError:
        return {host.lower()}


def _check_aliases(settings: Settings) -> None:
    for alias, names in settings.aliases.items():
        path = ("aliases", alias.decode(errors="surrogateescape"))
        _check_name(path)
        for name in names:
            if name in settings.aliases:
                other = quoted(name.decode(errors="surrogateescape"))
                target = "itself" if name == alias else f"{other}, which is an alias too"
                raise WrongValueError(path, f"names {target}; name queues")


def _check_name(path: tuple[str, str]) -> None:
    if not NAME.fullmatch(path[1].encode(errors="surrogateescape")):
        raise WrongValueError(path, f"is no name of a queue: that has {NAME_RULE}")


def check_queue(aliases: Container[bytes], name: str, table: dict[str, Any]) -> None:
    """Raise WrongValueError if what is set for the queue `name` contradicts itself, or one of the aliases."""
    path = ("queues", name)
    _check_name(path)
    if name.encode(errors="surrogateescape") in aliases:
        raise WrongValueError(path, "is an alias; set something for the queues it names")
    parent, plus, _ = name.partition("+")
    if parent and plus and table.get("fanout_only"):
        raise WrongValueError(
            (*path, "fanout_only"), "is true, and must be false: a child stores what is set on it"
        )
    _check_moves(aliases, path, table)


def _check_moves(aliases: Container[bytes], path: tuple[str, ...], table: dict[str, Any]) -> None:
    for field in MOVES:
        name = table.get(field)
        if name is not None and path == ("queues", name):
            raise WrongValueError((*path, field), "names the queue itself; name another")
        if name is not None and name.encode() in aliases:
            raise WrongValueError((*path, field), f"is {quoted(name)}, which is an alias; name a queue")
