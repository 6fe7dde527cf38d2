"""Who may look at the page, and what a browser may do with it.

Every request comes through here: the name by which the page was called, the login, and where a form was
filled in. Every answer leaves with headers under which a browser runs, shows and frames nothing but the
page's own.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from urllib.parse import urlsplit

import structlog
from aiohttp import web

from darner.web.guesses import Guesses

log = structlog.get_logger()

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # forms say where they are from: without that, no change
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# By these names a page on the loopback device is called.
LOCAL_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))
# How long, in seconds, the body of a form may take to come.
FORM_S = 30.0

USER = web.RequestKey("user", str)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Guard:
    """What lets requests in."""

    def __init__(self, logins: Mapping[str, str], names: Collection[str]) -> None:
        """`logins` has the password of each user; without any, nobody is asked. `names` are the hosts by
        which the page may be called, against other sites whose name is made to lead here; if empty, by any.
        """
        self._logins = {user: _digest(user, password) for user, password in logins.items()}
        self._names = names
        self._guesses = Guesses()
        self._secret = secrets.token_bytes(32)

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer a request by its handler, or refuse it."""
        try:
            self._check_host(request)
            request[USER] = self._user(request)
            answer = await handler(request)
        except web.HTTPException as error:
            error.headers.update(HEADERS)
            raise
        answer.headers.update(HEADERS)
        return answer

    def token(self, request: web.Request) -> str:
        """Return what a form must bring back: it is of this process and this user."""
        return hmac.new(self._secret, request[USER].encode(), hashlib.sha256).hexdigest()

    async def form(self, request: web.Request) -> dict[str, str]:
        """Return the fields of a form; HTTPForbidden unless it was filled in on this page."""
        origin = request.headers.get("Origin")
        if request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin" or (
            origin is not None and urlsplit(origin).netloc != request.headers["Host"]
        ):
            raise web.HTTPForbidden(text="This form is not of this page.\n")
        if request.content_type != "application/x-www-form-urlencoded":
            raise web.HTTPUnsupportedMediaType(text="This is no form.\n")
        try:
            async with asyncio.timeout(FORM_S):
                fields = {name: str(text) for name, text in (await request.post()).items()}
        except TimeoutError:
            raise web.HTTPRequestTimeout(text="The form did not come to its end.\n") from None
        except (LookupError, ValueError):  # of the charset that it names, and that it is not in
            raise web.HTTPBadRequest(text="This form cannot be read.\n") from None
        if not hmac.compare_digest(fields.get("token", "").encode(), self.token(request).encode()):
            raise web.HTTPForbidden(
                text="This form is from before a restart, or from elsewhere: go back and reload.\n"
            )
        return fields

    def _check_host(self, request: web.Request) -> None:
        try:
            host = urlsplit(f"//{request.headers['Host']}").hostname
        except (KeyError, ValueError):
            raise web.HTTPBadRequest(text="No Host.\n") from None
        if self._names and host not in self._names:
            raise web.HTTPForbidden(text="The page is not called so: see --name.\n")

    def _user(self, request: web.Request) -> str:
        if not self._logins:
            return ""
        now = time.monotonic()
        address = request.remote or ""
        if not self._guesses.may_guess(address, now):
            raise web.HTTPTooManyRequests(text="Too many wrong passwords: wait a minute.\n")
        given = request.headers.get("Authorization", "")
        if given:
            user, password = _credentials(given)
            digest = _digest(user, password)
            # all are compared, so the time tells nothing
            matches = [hmac.compare_digest(digest, right) for right in self._logins.values()]
            if any(matches):
                return user
            self._guesses.note_wrong(address, now)
            log.warning("wrong password for the page", user=user[:64], peer=address)
        raise web.HTTPUnauthorized(
            text="User and password, please.\n",
            headers={"WWW-Authenticate": 'Basic realm="darner", charset="UTF-8"'},
        )


def _digest(user: str, password: str) -> bytes:
    return hashlib.sha256(f"{user}:{password}".encode(errors="surrogateescape")).digest()


def _credentials(header: str) -> tuple[str, str]:
    scheme, _, text = header.partition(" ")
    try:
        user, _, password = base64.b64decode(text, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return "", ""
    return (user, password) if scheme.lower() == "basic" else ("", "")
