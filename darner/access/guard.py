"""What a client may do: permissions of its user, and commands that the server denies."""

from collections.abc import Iterable

from darner._proto import Request, Verb
from darner.access.auth_file import User
from darner.access.patterns import compile_patterns, matches, matches_queue_of, parent_of
from darner.config.kinds import COMMANDS
from darner.config.settings import MOVES


def _refusal(what: str) -> bytes:
    return f"CLIENT_ERROR not permitted to {what}\r\n".encode()


READ = _refusal("read this queue")
WRITE = _refusal("write to this queue")
MANAGE = _refusal("manage this queue")
ADMIN = _refusal("do that: it takes an admin")
DENIED = _refusal("do that: the server denies it (deny)")

# Verbs that every user may send, and those by which the parser says what is wrong with its input. A verb
# that is neither here nor in `Guard.refusal` takes an admin.
OPEN_TO_ALL = frozenset(
    (
        Verb.VERSION, Verb.QUIT, Verb.REFUSED, Verb.FATAL, Verb.GET_END, Verb.BINARY, Verb.TLS, Verb.HTTP,
        Verb.MN, Verb.ME,
    )
)  # fmt: skip


# What the arguments of `configure` begin with that name a queue for items to be moved to.
_MOVES = tuple(f"{field}=".encode() for field in MOVES)

# The verbs of each command that `deny` may name.
VERBS = {word: frozenset((Verb[word.upper()],)) for word in COMMANDS}
VERBS["set"] |= {Verb.SET_BEGIN, Verb.SET_CHUNK, Verb.SET_END}


def denied_verbs(words: Iterable[str]) -> frozenset[Verb]:
    """Return the verbs of the commands that the setting `deny` names."""
    return frozenset(verb for word in words for verb in VERBS[word])


class Guard:
    """The permissions of one connection: those of its user, less what the server denies to all but admins."""

    __slots__ = ("_denied", "_manages", "_reads", "_refuses_item", "_writes", "name", "user")

    def __init__(self, name: str, user: User | None, denied: frozenset[Verb] = frozenset()) -> None:
        """Without a user everything is allowed that is not denied."""
        self.name = name
        self._denied = denied
        self.user = user
        self._reads = compile_patterns(user.read if user is not None else ())
        self._writes = compile_patterns(user.write if user is not None else ())
        self._manages = compile_patterns(user.manage if user is not None else ())
        # whether the large item that is being received is refused
        self._refuses_item = False

    def refusal(self, request: Request) -> bytes | None:
        """Return the error to answer a request with: None if the request is allowed, b"" if it is refused
        and the error is due only with the last part of the item."""
        user = self.user
        if user is not None and user.admin:
            return None
        verb = request.verb
        if verb in self._denied:
            return b"" if verb in (Verb.SET_BEGIN, Verb.SET_CHUNK) else DENIED
        return None if user is None else self._not_permitted(request, user)

    def _not_permitted(self, request: Request, user: User) -> bytes | None:
        verb = request.verb
        if verb in (Verb.GET, Verb.GETS):
            allowed = self._may_read(request.queue) and (
                request.rest is None or all(self._may_read(key.queue) for key in request.rest)
            )
            return None if allowed else READ
        if verb in (Verb.SET, Verb.SET_BEGIN):
            if self._may_write(request.queue):
                return None
            self._refuses_item = verb == Verb.SET_BEGIN
            return b"" if self._refuses_item else WRITE
        if verb in (Verb.SET_CHUNK, Verb.SET_END):
            if not self._refuses_item:
                return None
            self._refuses_item = verb == Verb.SET_CHUNK
            return b"" if self._refuses_item else WRITE
        if verb in (Verb.MONITOR, Verb.CONFIRM):
            # without a name, the command itself says what is missing
            return None if not request.args or self._may_read(request.args[0]) else READ
        if verb in (Verb.DELETE, Verb.FLUSH, Verb.FLUSH_EXPIRED):
            return None if not request.args or matches_queue_of(self._manages, request.args[0]) else MANAGE
        if verb == Verb.CONFIGURE:
            return self._not_configurable(*request.args) if request.args else None
        if verb in OPEN_TO_ALL or (verb == Verb.STATS and request.args != [b"reset"]):
            return None
        return None if verb == Verb.STATUS and not request.args and user.read else ADMIN

    def _not_configurable(self, queue: bytes, *arguments: bytes) -> bytes | None:
        """Return the error for a user who may not change these settings of a queue.

        A queue that items are moved to is written to. Naming a child makes it store the parent's items.
        """
        parent = parent_of(queue)
        knows_parent = any(matches(known, parent) for known in (self._manages, self._reads, self._writes))
        if not matches(self._manages, queue) or (parent and not knows_parent):
            return MANAGE
        moves = [argument.partition(b"=") for argument in arguments if argument.startswith(_MOVES)]
        return None if all(self._may_write(to) for *_, to in moves if to not in (b"", b"none")) else WRITE

    def _may_read(self, name: bytes) -> bool:
        """Return whether the user may get from a queue, a cursor or a child.

        Naming a child makes it receive what is set on its parent, so the parent must be readable, too.
        """
        parent = parent_of(name)
        return matches_queue_of(self._reads, name) and (not parent or matches(self._reads, parent))

    def _may_write(self, queue: bytes) -> bool:
        """Return whether the user may set to a queue or a child.

        Naming a child makes it store the parent's items once more, and refuse the parent's sets when it is
        full; so the user must be allowed to read or write the parent, too.
        """
        parent = parent_of(queue)
        return matches(self._writes, queue) and (
            not parent or matches(self._writes, parent) or matches(self._reads, parent)
        )
