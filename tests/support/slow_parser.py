"""A slow parser of the protocol, written from docs/protocol.md, and its comparison with the compiled one.

Where a request is wrong in several ways the protocol does not say which error is reported: the slow parser
names each that may be.
"""

import base64
import re

from darner._proto import MAX_LINE_BYTES, Parser, Verb
from darner._records import CHUNK_BYTES

FORMAT = b"CLIENT_ERROR bad command line format\r\n"
NAME = b"CLIENT_ERROR bad queue name: 1 to 250 bytes without space, control character or /\r\n"
GET_OPTION = (
    b"CLIENT_ERROR unknown option: get takes t=<ms> open close[=<token>] abort[=<token>] delay=<ms>"
    b" peek from=<id> cursor=<name>\r\n"
)
SET_OPTION = b"CLIENT_ERROR unknown option: set takes sync delay=<ms> id=<key>\r\n"
TIMEOUT = b"CLIENT_ERROR bad timeout: t takes milliseconds\r\n"
ABORT = b"CLIENT_ERROR abort must be by itself, or with a delay\r\n"
DELAY_ALONE = b"CLIENT_ERROR a get takes a delay with abort alone\r\n"
TOKEN = b"CLIENT_ERROR bad token: close and abort take one token, as gets has given it\r\n"
FROM = b"CLIENT_ERROR bad id: from takes the id of an item, with peek, and without t and close\r\n"
ID = b"CLIENT_ERROR bad id: 1 to 250 bytes without space, control character or /\r\n"
PEEK = b"CLIENT_ERROR cannot open and peek\r\n"
MANY = b"CLIENT_ERROR to wait on several queues, give each of them the same t\r\n"
TOO_LONG = b"CLIENT_ERROR line too long\r\n"
DELAY = b"CLIENT_ERROR bad delay: delay takes milliseconds\r\n"
BAD_DATA = b"CLIENT_ERROR bad data chunk\r\n"

STORAGE = (b"set", b"add", b"replace", b"append", b"prepend", b"cas")
# By verb: the least number of words with a noreply, and the most words without it.
COLD = {
    b"delete": (2, 2),
    b"flush": (2, 1),
    b"flush_all": (1, 1),
    b"verbosity": (1, 1),
    b"flush_expired": (9999, 1),
    b"flush_all_expired": (9999, 0),
    b"stats": (9999, 9999),
    b"version": (9999, 0),
    b"quit": (9999, 0),
    b"dump_stats": (9999, 9999),
    b"dump_config": (9999, 9999),
    b"status": (9999, 1),
    b"reload": (9999, 0),
    b"shutdown": (9999, 0),
    b"configure": (2, 9999),
    b"monitor": (9999, 3),
    b"confirm": (9999, 2),
    b"mn": (9999, 0),
    b"me": (9999, 2),
}
GET_LINE_BYTES = 1 << 20
WHOLE_LINE_BYTES = 32 << 10
INVALID_FLAG = b"CLIENT_ERROR invalid flag\r\n"
INVALID_MODE = b"CLIENT_ERROR invalid mode: ms takes S alone\r\n"
HTTP = re.compile(rb"(.* )?HTTP/[0-9][^ ]*", re.IGNORECASE | re.DOTALL)
NUMBER = re.compile(rb"[0-9]{1,18}")
LONGEST_WAIT_MS = 2**31 - 1


# The requests of the compiled parser, as plain tuples


def shown(request):
    verb = Verb(request.verb)
    if request.meta is not None and verb in (Verb.GET, Verb.DELETE):
        meta = request.meta
        queue = request.queue if verb == Verb.GET else request.args[0]
        return verb, queue, *given(request), meta.wants_value, meta.is_quiet, meta.token
    if verb in (Verb.GET, Verb.GETS):
        keys = [request, *(request.rest or ())]
        asked = tuple((k.key, k.queue, *given(k)) for k in keys)
        return verb, asked, request.waits_on_any, request.is_run
    if verb in (Verb.SET, Verb.SET_BEGIN):
        data = request.data if verb == Verb.SET else None
        meta = (request.flags, request.exptime, request.size, request.noreply)
        return verb, request.queue, request.sync, request.delay_ms, request.dedup_id, *meta, data
    if verb == Verb.SET_CHUNK:
        return verb, request.data
    if verb == Verb.SET_END:
        return verb, request.noreply
    if verb in (Verb.REFUSED, Verb.FATAL):
        return verb, request.error, request.noreply
    if verb in (Verb.BINARY, Verb.TLS, Verb.HTTP, Verb.GET_END):
        return (verb,)
    return verb, tuple(request.args), request.noreply


def given(request):
    """Return the options of a key, and the numbers behind them."""
    names = ("open", "close", "abort", "peek", "has_delay")
    options = frozenset(name for name in names if getattr(request, name))
    return options, request.timeout_ms, request.token, request.from_id, request.delay_ms


def compiled(*pieces):
    parser = Parser()
    found = []
    for piece in pieces:
        parser.feed(piece)
        for one in map(shown, parser):
            # the keys of a long get may be parted anywhere
            if found and found[-1][0] == one[0] in (Verb.GET, Verb.GETS) and found[-1][-1] is True:
                found[-1] = (*one[:1], found[-1][1] + one[1], *one[2:])
            else:
                found.append(one)
    return found


# The slow parser


def name_is_bad(name):
    return not 1 <= len(name) <= 250 or any(c <= 32 or c == 127 for c in name)


def integer(word):
    sign, digits = (-1, word[1:]) if word[:1] == b"-" else (1, word)
    return sign * int(digits) if NUMBER.fullmatch(digits) else None


def token_of(word):
    return int(word) if re.fullmatch(rb"[0-9]+", word) and 0 < int(word) < 2**64 else None


def get_key(word):
    """Return what one key of a get asks for, its errors, and whether it waits."""
    queue, *given = word.split(b"/")
    wrong = [NAME] if name_is_bad(queue) else []
    found, wait, tokens, ids, delay = set(), None, [], [], 0
    for option in given:
        name, equals, number = option.partition(b"=")
        if option in (b"open", b"close", b"abort", b"peek"):
            found.add(option.decode())
        elif equals and name in (b"close", b"abort"):
            found.add(name.decode())
            tokens.append(token_of(number))
            wrong += [TOKEN] if tokens[-1] is None or len(tokens) > 1 else []
        elif equals and name in (b"t", b"delay", b"from"):
            error = {b"t": TIMEOUT, b"delay": DELAY, b"from": FROM}[name]
            wrong += [] if NUMBER.fullmatch(number) and not (name == b"from" and ids) else [error]
            value = int(number) if NUMBER.fullmatch(number) else 0
            if name == b"t":
                wait = min(value, LONGEST_WAIT_MS)
            elif name == b"delay":
                found.add("has_delay")
                delay = value
            else:
                ids.append(max(1, value))
        else:
            wrong.append(GET_OPTION)
    wrong += wrong_together(found, waits=wait is not None, has_id=bool(ids))
    key = word, queue, frozenset(found), wait or 0, (tokens or [0])[0], (ids or [0])[0], delay
    return key, wrong, wait is not None


def wrong_together(found, *, waits, has_id):
    """Yield the errors of options that do not go together."""
    others = found - {"has_delay"}
    if "abort" in found and (len(others) > 1 or waits):
        yield ABORT
    if "has_delay" in found and others != {"abort"}:
        yield DELAY_ALONE
    if has_id and (found != {"peek"} or waits):
        yield FROM
    if found >= {"open", "peek"}:
        yield PEEK


def slow(data):
    """Yield the requests in `data`; an error has all texts that may be reported."""
    if data[:1] in (b"\x80", b"\x16"):
        yield (Verb.BINARY if data[:1] == b"\x80" else Verb.TLS,)
        return
    while True:
        line, newline, rest = data.partition(b"\n")
        content = line[:-1] if newline and line.endswith(b"\r") else line
        is_get = re.match(rb" *gets? ", content[:MAX_LINE_BYTES], re.IGNORECASE)
        if not newline:
            # no test has a longer one
            if len(data) >= MAX_LINE_BYTES + 2 and not is_get:
                yield Verb.FATAL, {TOO_LONG}, False
            return
        assert len(content) <= WHOLE_LINE_BYTES
        if len(content) > MAX_LINE_BYTES and not is_get:
            yield Verb.FATAL, {TOO_LONG}, False
            return
        data = yield from slow_line(content, rest)
        if data is None:
            return


def slow_line(content, data):
    """Yield the request of a line; return the bytes behind it, or None if nothing more is read."""
    words = [word for word in content.split(b" ") if word]
    verb = words[0].lower() if words else b""
    if (words[1:] and HTTP.fullmatch(words[-1])) or verb.startswith(b"host:"):
        yield (Verb.HTTP,)
        return None
    if verb in STORAGE or verb == b"ms":
        return (yield from slow_storage(verb, words, data))
    if verb in (b"get", b"gets"):
        yield from slow_get(verb, words, is_long=len(content) > MAX_LINE_BYTES)
        return None if any(len(word) > MAX_LINE_BYTES for word in words) else data
    found = slow_meta(verb, words) if verb in (b"mg", b"md") else slow_other(verb, words)
    yield found
    return None if found[0] == Verb.FATAL else data


def slow_other(verb, words):
    if verb in (b"touch", b"incr", b"decr", b"ma"):
        return Verb.REFUSED, {unsupported(verb)}, words[-1] == b"noreply"
    if verb in COLD:
        before, most = COLD[verb]
        noreply = len(words) > before and words[-1] == b"noreply"
        args = tuple(words[1 : len(words) - noreply])
        if len(args) > most or (verb == b"stats" and args == (b"noreply",)):
            return Verb.REFUSED, {FORMAT}, noreply
        return Verb[verb.decode().upper()], args, noreply
    return Verb.FATAL if may_have_block(words) else Verb.REFUSED, {b"ERROR\r\n"}, False


def may_have_block(words):
    if len(words) == 1:
        return re.match(rb"[$*][0-9]", words[0])
    return len(words) > 4 or any(re.fullmatch(rb"[+-]?[0-9]+", word) for word in words[2:])


def meta_flags(verb, words):
    """Return the key, the flags by letter, and the errors."""
    if not words:
        return b"", {}, [FORMAT]
    allowed = {b"mg": b"vsfckbOqthl", b"ms": b"FTckbOqIM", b"md": b"kbOqC"}[verb]
    key, wrong = words[0], []
    for word in words[1:]:
        if word[:1] not in allowed or (word[1:] and word[:1] not in b"FTOCM"):
            wrong.append(INVALID_FLAG)
        elif word[:1] in b"FTC" and integer(word[1:]) is None:
            wrong.append(FORMAT)
        elif word[:1] == b"M" and word not in (b"MS", b"Ms"):
            wrong.append(INVALID_MODE)
    flags = {word[:1]: word[1:] for word in words[1:]}
    if b"b" in flags:
        try:
            key = base64.b64decode(key, validate=True)
        except ValueError:
            wrong.append(FORMAT)
    return key, flags, wrong


def slow_meta(verb, words):
    key, flags, wrong = meta_flags(verb, words[1:])
    token = integer(flags.get(b"C", b""))
    if verb == b"md" and b"C" not in flags:
        if wrong:
            return Verb.REFUSED, set(wrong), False
        return Verb.DELETE, key, frozenset(), 0, 0, 0, 0, False, b"q" in flags, None
    (_, queue, found, *numbers), errors, waits = get_key(key)
    wrong += errors
    if verb == b"md":
        if found or waits:
            wrong.append(NAME)
        found = frozenset({"close"})
    if wrong:
        return Verb.REFUSED, set(wrong), False
    return Verb.GET, queue, found, *numbers, b"v" in flags, b"q" in flags, token


def unsupported(verb):
    return b"CLIENT_ERROR " + verb + b" is not supported\r\n"


def slow_get(verb, words, *, is_long):
    if len(words) < 2:
        yield Verb.REFUSED, {FORMAT}, False
        return
    if any(len(word) > MAX_LINE_BYTES for word in words):
        yield Verb.FATAL, {TOO_LONG}, False
        return
    keys = [get_key(word) for word in words[1:]]
    wrong = {error for _, errors, _ in keys for error in errors}
    if len({(waits, key[3]) for key, _, waits in keys}) > 1:
        wrong.add(MANY)
    if wrong:
        yield Verb.REFUSED, wrong, False
        return
    waits_on_any = len(keys) > 1 and keys[0][2]
    is_run = is_long and len(keys) > 1 and not waits_on_any
    yield Verb[verb.decode().upper()], tuple(key for key, _, _ in keys), waits_on_any, is_run
    if is_run:
        yield (Verb.GET_END,)


def slow_storage(verb, words, data):
    """Yield the requests of a storage command; return the bytes behind it, or None if that is unknown."""
    is_meta = verb == b"ms"
    noreply = words[-1] == b"noreply" and not is_meta
    place = 2 if is_meta else 4
    if len(words) <= place or not NUMBER.fullmatch(words[place]):
        yield Verb.FATAL, {FORMAT}, noreply
        return None
    size = int(words[place])
    if is_meta:
        key, found, errors = meta_flags(verb, [words[1], *words[3:]])
        flags, exptime = (integer(found.get(letter, b"0")) for letter in (b"F", b"T"))
        words = words[:5]
    else:
        key, flags, exptime, errors = words[1], integer(words[2]), integer(words[3]), []
    queue, *given = key.split(b"/")
    ids = [option[3:] for option in given if option.startswith(b"id=")]
    if verb not in (b"set", b"ms"):
        wrong = {unsupported(verb)}
    else:
        found = {
            NAME: name_is_bad(queue),
            SET_OPTION: any(
                option != b"sync" and not option.startswith((b"delay=", b"id=")) for option in given
            )
            or len(ids) > 1,
            ID: any(map(name_is_bad, ids)) or b"id=" in given,
            DELAY: any(option.startswith(b"delay=") and not NUMBER.fullmatch(option[6:]) for option in given),
            FORMAT: None in (flags, exptime) or not 0 <= flags < 2**32 or len(words) > 5 + noreply,
        }
        wrong = {error for error, is_so in found.items() if is_so} | set(errors)
        noreply = noreply and len(words) == 6
    delays = [int(option[6:]) for option in given if not wrong and option.startswith(b"delay=")]
    delay, id = (delays or [0])[-1], (ids or [None])[0]
    meta = (queue, b"sync" in given, delay, id, flags, exptime, size, noreply)
    block, end = data[:size], data[size : size + 2]
    if not wrong and size > CHUNK_BYTES:
        yield Verb.SET_BEGIN, *meta, None
        for at in range(0, size, CHUNK_BYTES):
            chunk = block[at : at + CHUNK_BYTES]
            if len(chunk) == min(CHUNK_BYTES, size - at):
                yield Verb.SET_CHUNK, chunk
    if len(block) < size or (end != b"\r\n" and b"\r\n".startswith(end)):
        return None  # the rest is still to come
    yield slow_end(wrong, noreply, meta, block, end)
    return data[size + 2 :] if end == b"\r\n" else None


def slow_end(wrong, noreply, meta, block, end):
    """The request that ends with this data block."""
    if end != b"\r\n":
        return Verb.FATAL, {BAD_DATA}, noreply
    if wrong:
        return Verb.REFUSED, wrong, noreply
    return (Verb.SET_END, noreply) if len(block) > CHUNK_BYTES else (Verb.SET, *meta, block)


def agrees(found, expected):
    if found[0] in (Verb.REFUSED, Verb.FATAL) and found[0] == expected[0]:
        return found[1] in expected[1] and found[2] == expected[2]
    return found == expected


def check(data, *pieces):
    """Compare both parsers on these bytes, which the compiled one gets in these pieces."""
    found = compiled(*pieces or (data,))
    expected = list(slow(data))
    for one, other in zip(found, expected, strict=False):
        assert agrees(one, other), (one, other)
    assert len(found) == len(expected)
