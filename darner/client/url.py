"""The address of a server, as a URL says it: no connection is made here."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from darner.client.errors import BadRequestError

PORT = 22133
_FORMS = "host:port, darner://[user:password@]host[:port], darners://… for TLS, or darner+unix:///path"


@dataclass(frozen=True)
class Address:
    """Where a server listens, and how to get in: by TCP, or by a Unix socket if there is a `path`."""

    host: str = ""
    port: int = PORT
    path: str = ""
    is_tls: bool = False
    user: str = ""
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        """Return the address without user and password, as errors and `Item.server` have it."""
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(text: str) -> Address:
    """Return the address that a URL or `host:port` gives; BadRequestError if it gives none.

    A password may be percent-encoded. It is in no error text.
    """
    try:
        parts = urlsplit(text if "://" in text else f"darner://{text}")
        port = PORT if parts.port is None else parts.port
        (parts.hostname or "").encode("idna")  # as the look-up of the host will do
    except ValueError:
        raise _bad(text) from None
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if parts.query or parts.fragment or bool(user) != bool(password):
        raise _bad(text)
    if re.search(r"\s", user) or re.search(r"[\r\n]", password):
        raise BadRequestError("a user has no space, and a password no line end")
    host, path = parts.hostname or "", unquote(parts.path)
    if parts.scheme == "darner+unix" and not host and path.startswith("/"):
        return Address(path=path, user=user, password=password)
    if parts.scheme not in ("darner", "darners") or not (host and port) or path not in ("", "/"):
        raise _bad(text)
    return Address(host, port, is_tls=parts.scheme == "darners", user=user, password=password)


def parse_all(servers: str | Iterable[str]) -> tuple[Address, ...]:
    """Return the addresses of one server or of a fleet; BadRequestError if one is wrong or named twice."""
    addresses = tuple(map(parse, (servers,) if isinstance(servers, str) else servers))
    if not addresses or len({str(address) for address in addresses}) < len(addresses):
        raise BadRequestError("name one server or several, each once")
    return addresses


def _bad(text: str) -> BadRequestError:
    without_login = re.sub(r"(://)?[^/]*@", r"\1", text)
    return BadRequestError(f"{without_login!r} is not the address of a server: {_FORMS}")
