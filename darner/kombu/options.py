"""What `broker_transport_options` may say, and where a kombu connection leads."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from darner.client.errors import BadRequestError
from darner.client.url import PORT, Address, parse


@dataclass(frozen=True)
class Options:
    """The options of this transport; those of kombu itself stand beside them and are not looked at here."""

    # whether a publish returns only once the message is on the disk: it then outlives the machine, too
    sync: bool = False
    # whether a message that is sent again after a lost connection is stored once
    dedup: bool = False
    # how many seconds the server may take for a reply
    reply_timeout: float = 10.0
    # messages with an ETA at least so many seconds ahead wait in the server, not in a worker; None is never
    eta_as_delay: float | None = None
    # whether declared queues get their settings from here (`configure`), or the operator's alone
    configure: bool = True

    @classmethod
    def of(cls, transport_options: Mapping[str, Any]) -> Self:
        """Return the options of a connection. Raises BadRequestError if one of them is wrong."""
        names = {field.name for field in fields(cls)}
        options = cls(**{name: value for name, value in transport_options.items() if name in names})
        for name in ("sync", "dedup", "configure"):
            if not isinstance(getattr(options, name), bool):
                raise BadRequestError(f"broker_transport_options: {name} is True or False")
        if not _is_time(options.reply_timeout):
            raise BadRequestError("broker_transport_options: reply_timeout is a number of seconds above 0")
        if options.eta_as_delay is not None and not _is_time(options.eta_as_delay):
            raise BadRequestError(
                "broker_transport_options: eta_as_delay is a number of seconds above 0, or None"
            )
        return options


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def address_of(client: Any) -> Address:
    """Return where a kombu connection leads. Raises BadRequestError if that is no server's address."""
    hostname = client.hostname or ""
    if "://" in hostname:
        # kombu hands over the whole URL, or of darner+unix:// what is behind the plus
        return parse(f"darner+{hostname}" if hostname.startswith("unix://") else hostname)
    user, password = client.userid or "", client.password or ""
    if client.transport_cls == "darner+unix":
        return Address(path="/" + client.virtual_host.lstrip("/"), user=user, password=password)
    is_tls = client.transport_cls == "darners" or bool(client.ssl)
    return Address(hostname or "localhost", client.port or PORT, is_tls=is_tls, user=user, password=password)


def tls_of(client: Any, address: Address) -> ssl.SSLContext | None:
    """Return the context for a server that is reached over TLS: the system's authorities, or what
    `broker_use_ssl` says with `ca_certs`, `certfile` and `keyfile`."""
    if not address.is_tls:
        return None
    files: Mapping[str, Any] = client.ssl if isinstance(client.ssl, Mapping) else {}
    context = ssl.create_default_context(cafile=files.get("ca_certs"))
    if "certfile" in files:
        context.load_cert_chain(files["certfile"], files.get("keyfile"))
    return context
