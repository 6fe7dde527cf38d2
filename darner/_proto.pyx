# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, auto_pickle=False
"""The protocol, compiled: bytes to requests, items to replies, and the write of replies to a socket.

No queue and no clock in here. A `Parser` is fed what the network delivered and is then iterated: each step gives one
`Request`, and stops where the bytes end. A request's meaning is decided in `darner.wire.commands`; what is a request,
and where the next one begins, is decided here alone.
"""

cimport cython
from cpython.exc cimport PyErr_SetFromErrno
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memset

from darner._records cimport _CHUNK, _RECORD_HEAD, Item, token_of

from darner.meta_flags import Meta

__all__ = ["MAX_GET_LINE_BYTES", "MAX_LINE_BYTES", "MAX_NAME_BYTES", "Parser", "Request", "Verb", "send", "valid_name", "value", "value_header"]

cdef enum:
    # Limits of a line and of a name: memcached's, too.
    _MAX_LINE = 2048
    _MAX_NAME = 250
    # The most words of a line: 2,048 bytes have room for 1,024 of one byte each.
    _MAX_WORDS = 1025
    # The line of a `get` may be longer, for clients ask for hundreds of keys in one line. Above _MAX_LINE its keys
    # come in runs, each of so many keys or so many bytes at most.
    _MAX_GET_LINE = 1048576
    _RUN_KEYS = 128
    _RUN_BYTES = 16384
    # Up to this size such a line is checked before its first key is served, so that no key of a wrong line is. A
    # longer line is not kept in memory: its keys are served as they come.
    _MAX_WHOLE_LINE = 32768
    # The longest wait, 24 days: longer than any that a client means, and short enough for every timer.
    _MAX_TIMEOUT_MS = 0x7fffffff

MAX_LINE_BYTES = _MAX_LINE
MAX_GET_LINE_BYTES = _MAX_GET_LINE
MAX_NAME_BYTES = _MAX_NAME


cpdef enum Verb:
    GET
    GETS
    # The end of a long get, whose keys came in runs.
    GET_END
    SET
    # A set of more than CHUNK_BYTES: SET_BEGIN, then as many SET_CHUNK as it takes, then SET_END.
    SET_BEGIN
    SET_CHUNK
    SET_END
    # A request that is refused for the reason in `error`; its data block, if it had one, was skipped.
    REFUSED
    # As REFUSED, and where the next request begins is unknown: reply and close.
    FATAL
    # The client speaks another protocol, memcache's binary one, TLS or HTTP: close.
    BINARY
    TLS
    HTTP
    DELETE
    FLUSH
    FLUSH_ALL
    FLUSH_EXPIRED
    FLUSH_ALL_EXPIRED
    STATS
    VERSION
    VERBOSITY
    QUIT
    DUMP_STATS
    DUMP_CONFIG
    STATUS
    RELOAD
    SHUTDOWN
    MONITOR
    CONFIRM
    # memcached's meta commands `mn` and `me`; the others are a GET, a SET or a DELETE with flags in `meta`.
    MN
    ME
    CONFIGURE


cdef enum:
    _OPEN = 1
    _CLOSE = 2
    _ABORT = 4
    _PEEK = 8

cdef bytes E_UNKNOWN = b"ERROR\r\n"
cdef bytes E_LINE_TOO_LONG = b"CLIENT_ERROR line too long\r\n"
cdef bytes E_BAD_FORMAT = b"CLIENT_ERROR bad command line format\r\n"
cdef bytes E_BAD_DATA = b"CLIENT_ERROR bad data chunk\r\n"
cdef bytes E_BAD_NAME = (
    b"CLIENT_ERROR bad queue name: 1 to 250 bytes without space, control character or /\r\n")
cdef bytes E_GET_OPTION = (
    b"CLIENT_ERROR unknown option: get takes t=<ms> open close[=<token>] abort[=<token>] delay=<ms> peek from=<id>"
    b" cursor=<name>\r\n")
cdef bytes E_SET_OPTION = b"CLIENT_ERROR unknown option: set takes sync delay=<ms> id=<key>\r\n"
cdef bytes E_TIMEOUT = b"CLIENT_ERROR bad timeout: t takes milliseconds\r\n"
cdef bytes E_DELAY = b"CLIENT_ERROR bad delay: delay takes milliseconds\r\n"
cdef bytes E_ABORT = b"CLIENT_ERROR abort must be by itself, or with a delay\r\n"
cdef bytes E_DELAY_ALONE = b"CLIENT_ERROR a get takes a delay with abort alone\r\n"
cdef bytes E_DELAY_CURSOR = (
    b"CLIENT_ERROR a cursor takes no delay: it removes nothing from its queue, so it has nothing to put back\r\n")
cdef bytes E_TOKEN = b"CLIENT_ERROR bad token: close and abort take one token, as gets has given it\r\n"
cdef bytes E_FROM = b"CLIENT_ERROR bad id: from takes the id of an item, with peek, and without t and close\r\n"
cdef bytes E_ID = b"CLIENT_ERROR bad id: 1 to 250 bytes without space, control character or /\r\n"
cdef bytes E_PEEK = b"CLIENT_ERROR cannot open and peek\r\n"
cdef bytes E_WAIT_MANY = b"CLIENT_ERROR to wait on several queues, give each of them the same t\r\n"
cdef bytes E_WAIT_LINE = b"CLIENT_ERROR too many queues to wait on: the line has more than 32768 bytes\r\n"


@cython.final
@cython.no_gc
@cython.freelist(256)
cdef class Request:
    """One request of a client, as parsed. Which fields have a meaning depends on `verb`."""

    @property
    def data(self):
        """The bytes of the item, of a SET, or of the chunk, of a SET_CHUNK."""
        return self.chunk if self.record is None else self.record[_RECORD_HEAD:]


cdef inline Request new_request(int verb):
    cdef Request request = Request.__new__(Request)
    request.verb = verb
    return request


cdef inline Request new_error(int verb, bytes error, bint noreply):
    cdef Request request = new_request(verb)
    request.error = error
    request.noreply = noreply
    return request


cdef inline bytes word_bytes(Word* word):
    return PyBytes_FromStringAndSize(word.at, word.size)


cdef inline bint word_is(Word* word, const char* text, Py_ssize_t size) noexcept:
    return word.size == size and memcmp(word.at, text, size) == 0


cdef bint name_is_valid(const char* at, Py_ssize_t size) noexcept:
    cdef Py_ssize_t i
    cdef uint8_t c
    if size < 1 or size > _MAX_NAME:
        return False
    for i in range(size):
        c = <uint8_t>at[i]
        if c <= 0x20 or c == 0x7f or c == c"/":
            return False
    return True


def valid_name(bytes name not None):
    """Return whether a queue may have this name: 1 to 250 bytes without space, control character or `/`."""
    return name_is_valid(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))


cdef bint read_u64(const char* at, Py_ssize_t size, uint64_t* out) noexcept:
    """Read a number of 1 to 18 decimal digits, which always fits into 64 bits; returns False if it is none."""
    cdef uint64_t n = 0
    cdef Py_ssize_t i
    cdef uint8_t c
    if size < 1 or size > 18:
        return False
    for i in range(size):
        c = <uint8_t>at[i] - 48
        if c > 9:
            return False
        n = n * 10 + c
    out[0] = n
    return True


cdef bint read_token(const char* at, Py_ssize_t size, uint64_t* out) noexcept:
    """Read a number of 64 bits that is not 0; returns False if it is none."""
    cdef uint64_t n = 0
    cdef Py_ssize_t i
    cdef uint8_t c
    for i in range(size):
        c = <uint8_t>at[i] - 48
        if c > 9 or n > (<uint64_t>-1 - c) // 10:
            return False
        n = n * 10 + c
    out[0] = n
    return n != 0


cdef bint read_i64(const char* at, Py_ssize_t size, int64_t* out) noexcept:
    cdef uint64_t n = 0
    cdef bint negative = size > 0 and at[0] == c"-"
    if not read_u64(at + negative, size - negative, &n):
        return False
    out[0] = -<int64_t>n if negative else <int64_t>n
    return True


cdef Py_ssize_t split_words(const char* at, Py_ssize_t size, Word* words) noexcept:
    """Split a line at runs of spaces; returns how many words there are."""
    cdef Py_ssize_t i = 0, start, n = 0
    while i < size:
        if at[i] == c" ":
            i += 1
            continue
        start = i
        while i < size and at[i] != c" ":
            i += 1
        words[n].at = at + start
        words[n].size = i - start
        n += 1
    return n


cdef bint is_number(Word* word) noexcept:
    """Return whether a word is a decimal number, of any length, with or without a sign."""
    cdef Py_ssize_t i, start = word.at[0] in b"+-"
    for i in range(start, word.size):
        if not c"0" <= word.at[i] <= c"9":
            return False
    return word.size > start


cdef bint starts_as(Word* word, const char* text, Py_ssize_t size) noexcept:
    """Return whether a word starts with a text in lower case, ignoring the case of the word."""
    cdef Py_ssize_t i
    cdef char c
    if word.size < size:
        return False
    for i in range(size):
        c = word.at[i]
        if (c + 32 if c"A" <= c <= c"Z" else c) != text[i]:
            return False
    return True


cdef bint ends_as_http(Word* word) noexcept:
    """Return whether a word is the last one of the first line of an HTTP request, such as `HTTP/1.1`."""
    return word.size > 5 and starts_as(word, b"http/", 5) and c"0" <= word.at[5] <= c"9"


cdef bint may_have_block(Word* words, Py_ssize_t n) noexcept:
    """Return whether a data block may follow a line whose verb is unknown.

    The line has as many words as a `set`, or a number behind the key, as that of an `ms`; or it is the length of a
    word in the protocol of Redis, such as `$9`."""
    cdef Py_ssize_t i
    if n == 1:
        return words[0].size > 1 and words[0].at[0] in b"$*" and c"0" <= words[0].at[1] <= c"9"
    for i in range(2, n):
        if is_number(&words[i]):
            return True
    return n > 4


cdef int lower_verb(Word* word, char* out) noexcept:
    """Write a verb in lower case to `out`; returns its length, 0 if it is longer than any verb there is."""
    cdef Py_ssize_t i
    cdef char c
    if word.size > 17:
        return 0
    for i in range(word.size):
        c = word.at[i]
        out[i] = c + 32 if c"A" <= c <= c"Z" else c
    return <int>word.size


cdef bint has_value(Word* option, const char* name, Py_ssize_t size) noexcept:
    """Return whether an option is `<name>=<value>`, with a name of `size` bytes; then only the value is left of it."""
    if option.size <= size or option.at[size] != c"=" or memcmp(option.at, name, size) != 0:
        return False
    option.at += size + 1
    option.size -= size + 1
    return True


cdef bytes parse_get_key(Request request, Word* word):
    """Set key, queue and options of a request from `queue[/option]*`; returns an error or None."""
    cdef:
        const char* at = word.at
        const char* end = word.at + word.size
        const char* slash = <const char*>memchr(at, c"/", word.size)
        Py_ssize_t size
        int options = 0
        bytes cursor = None
        Word option
        bint has_token
    request.key = word_bytes(word)
    size = word.size if slash == NULL else slash - at
    if not name_is_valid(at, size):
        return E_BAD_NAME
    if slash == NULL:
        request.queue = request.key
        request.fetches = True
        return None
    request.has_options = True
    request.queue = PyBytes_FromStringAndSize(at, size)
    while slash != NULL:
        option.at = slash + 1
        slash = <const char*>memchr(option.at, c"/", end - option.at)
        option.size = (end if slash == NULL else slash) - option.at
        if word_is(&option, b"open", 4):
            options |= _OPEN
        elif word_is(&option, b"close", 5):
            options |= _CLOSE
        elif word_is(&option, b"abort", 5):
            options |= _ABORT
        elif word_is(&option, b"peek", 4):
            options |= _PEEK
        elif has_value(&option, b"t", 1):
            request.waits = True
            if not read_u64(option.at, option.size, &request.timeout_ms):
                return E_TIMEOUT
            if request.timeout_ms > <uint64_t>_MAX_TIMEOUT_MS:
                request.timeout_ms = _MAX_TIMEOUT_MS
        elif has_value(&option, b"close", 5):
            if request.token or not read_token(option.at, option.size, &request.token):
                return E_TOKEN
            options |= _CLOSE
        elif has_value(&option, b"abort", 5):
            if request.token or not read_token(option.at, option.size, &request.token):
                return E_TOKEN
            options |= _ABORT
        elif has_value(&option, b"delay", 5):
            request.has_delay = True
            if not read_u64(option.at, option.size, &request.delay_ms):
                return E_DELAY
        elif has_value(&option, b"from", 4):
            if request.from_id or not read_u64(option.at, option.size, &request.from_id):
                return E_FROM
            # no item has the id 0
            request.from_id += request.from_id == 0
        elif cursor is None and has_value(&option, b"cursor", 6) and name_is_valid(option.at, option.size):
            cursor = word_bytes(&option)
        else:
            return E_GET_OPTION
    if cursor is not None:
        # items reserved through a cursor are not those of the queue
        request.queue += b"/cursor=" + cursor
    if options & _ABORT and (options != _ABORT or request.waits):
        return E_ABORT
    if request.has_delay and options != _ABORT:
        return E_DELAY_ALONE
    if request.has_delay and cursor is not None:
        return E_DELAY_CURSOR
    if request.from_id and (options != _PEEK or request.waits):
        return E_FROM
    if options & _OPEN and options & _PEEK:
        return E_PEEK
    request.open = (options & _OPEN) != 0
    request.close = (options & _CLOSE) != 0
    request.abort = (options & _ABORT) != 0
    request.peek = (options & _PEEK) != 0
    request.fetches = request.open or request.peek or not (request.close or request.abort)
    return None


cdef bytes parse_set_key(Request request, Word* word):
    """Set queue and options of a request from `queue[/sync][/delay=<ms>][/id=<key>]`; returns an error or None."""
    cdef:
        const char* at = word.at
        const char* end = word.at + word.size
        const char* slash = <const char*>memchr(at, c"/", word.size)
        Py_ssize_t size = word.size if slash == NULL else slash - at
        Word option
    if not name_is_valid(at, size):
        return E_BAD_NAME
    request.queue = PyBytes_FromStringAndSize(at, size)
    while slash != NULL:
        option.at = slash + 1
        slash = <const char*>memchr(option.at, c"/", end - option.at)
        option.size = (end if slash == NULL else slash) - option.at
        if word_is(&option, b"sync", 4):
            request.sync = True
        elif has_value(&option, b"delay", 5):
            if not read_u64(option.at, option.size, &request.delay_ms):
                return E_DELAY
        elif request.dedup_id is None and has_value(&option, b"id", 2):
            if not name_is_valid(option.at, option.size):
                return E_ID
            request.dedup_id = word_bytes(&option)
        else:
            return E_SET_OPTION
    return None


cdef inline bint waits_otherwise(Request one, Request other) noexcept:
    """Return whether two keys do not wait for the same time."""
    return one.waits != other.waits or one.timeout_ms != other.timeout_ms


cdef Request parse_get(Word* words, Py_ssize_t n, int verb):
    cdef Request first = new_request(verb), other
    cdef Py_ssize_t i
    cdef bytes error
    if n < 2:
        return new_error(REFUSED, E_BAD_FORMAT, False)
    first.with_cas = verb == GETS
    error = parse_get_key(first, &words[1])
    if error is None and n > 2:
        first.rest = []
        for i in range(2, n):
            other = new_request(verb)
            other.with_cas = first.with_cas
            error = parse_get_key(other, &words[i])
            if error is None and waits_otherwise(other, first):
                error = E_WAIT_MANY
            if error is not None:
                break
            first.rest.append(other)
        first.waits_on_any = first.waits
    if error is not None:
        return new_error(REFUSED, error, False)
    return first


cdef Request parse_set(Word* words, Py_ssize_t n):
    cdef Request request = new_request(SET)
    cdef int64_t flags = 0
    request.noreply = n == 6 and word_is(&words[5], b"noreply", 7)
    request.error = parse_set_key(request, &words[1])
    if n > 6 or (n == 6 and not request.noreply):
        request.error = E_BAD_FORMAT
    if not read_i64(words[2].at, words[2].size, &flags) or not 0 <= flags <= 0xffffffff:
        request.error = E_BAD_FORMAT
    if not read_i64(words[3].at, words[3].size, &request.exptime):
        request.error = E_BAD_FORMAT
    request.flags = <uint32_t>flags
    if request.error is not None:
        request.verb = REFUSED
    return request


cdef object parse_flags(bytes verb, Word* words, Py_ssize_t start, Py_ssize_t n):
    """Return the flags of a meta command, behind its key; or the error to reply with."""
    cdef list found = [word_bytes(&words[1])] if n > 1 else []
    cdef Py_ssize_t i
    for i in range(start, n):
        found.append(word_bytes(&words[i]))
    try:
        return Meta(verb, found)
    except ValueError as error:
        return error.args[0]


cdef Request parse_meta(bytes verb, Word* words, Py_ssize_t n):
    """Return the request of an `mg`, which is a get, or of an `md`, which deletes a queue or closes one item."""
    cdef object meta = parse_flags(verb, words, 2, n)
    cdef Request request
    cdef bytes key, error
    cdef Word word
    if type(meta) is bytes:
        return new_error(REFUSED, meta, False)
    key = meta.key
    word.at, word.size = PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)
    if verb == b"md" and meta.token is None:
        request = new_request(DELETE)
        request.args = [key]
        error = None
    else:
        request = new_request(GET)
        error = parse_get_key(request, &word)
        if verb == b"md":
            if request.waits or request.open or request.close or request.abort or request.peek:
                error = E_BAD_NAME
            request.has_options = request.close = True
            request.fetches = False
    request.meta = meta
    return request if error is None else new_error(REFUSED, error, False)


cdef Request parse_meta_set(Word* words, Py_ssize_t n):
    cdef object meta = parse_flags(b"ms", words, 3, n)
    cdef Request request
    cdef bytes key, error
    cdef Word word
    if type(meta) is bytes:
        return new_error(REFUSED, meta, False)
    key = meta.key
    word.at, word.size = PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)
    request = new_request(SET)
    error = parse_set_key(request, &word)
    if not 0 <= meta.flags <= 0xffffffff:
        error = E_BAD_FORMAT
    if error is not None:
        return new_error(REFUSED, error, False)
    request.flags = meta.flags
    request.exptime = meta.exptime
    request.meta = meta
    return request


cdef Request parse_cold(int verb, Word* words, Py_ssize_t n, Py_ssize_t noreply_from, Py_ssize_t most):
    """Return the request of a rare verb, with its words as they are, at most `most` of them.

    `noreply` has its meaning only as the last word, with at least `noreply_from` words before it, so that a queue can
    have that name."""
    cdef Request request = new_request(verb)
    cdef Py_ssize_t i
    if n > noreply_from and word_is(&words[n - 1], b"noreply", 7):
        request.noreply = True
        n -= 1
    if n - 1 > most or (verb == STATS and n == 2 and word_is(&words[1], b"noreply", 7)):
        return new_error(REFUSED, E_BAD_FORMAT, request.noreply)
    request.args = []
    for i in range(1, n):
        request.args.append(word_bytes(&words[i]))
    if verb == MONITOR and n > 1:
        # its items are sent as those of a get
        request.key = request.queue = request.args[0]
    return request


cdef enum:
    # The state of the parser: at the start of a line, among the keys of a long get, behind the last of them, in a data
    # block that is returned whole, in one returned in chunks, in one that is skipped, or closed after a FATAL.
    _LINE
    _KEYS
    _KEYS_END
    _BODY
    _STREAM
    _SWALLOW
    _CLOSED

# memcached's verbs that make no sense for queues: the error, and whether a data block follows.
cdef dict UNSUPPORTED = {
    verb: (b"CLIENT_ERROR " + verb + b" is not supported\r\n", has_block)
    for verb, has_block in (
        (b"add", True), (b"replace", True), (b"append", True), (b"prepend", True), (b"cas", True),
        (b"touch", False), (b"incr", False), (b"decr", False), (b"ma", False),
    )
}

cdef dict COLD = {
    # verb: (its number, how many words come before `noreply` or 0 if it takes none, how many arguments at most)
    b"delete": (DELETE, 2, 2), b"flush": (FLUSH, 2, 1), b"flush_all": (FLUSH_ALL, 1, 1),
    b"flush_expired": (FLUSH_EXPIRED, 0, 1), b"flush_all_expired": (FLUSH_ALL_EXPIRED, 0, 0), b"stats": (STATS, 0, _MAX_WORDS),
    b"version": (VERSION, 0, 0), b"verbosity": (VERBOSITY, 1, 1), b"quit": (QUIT, 0, 0),
    b"dump_stats": (DUMP_STATS, 0, _MAX_WORDS), b"dump_config": (DUMP_CONFIG, 0, _MAX_WORDS), b"status": (STATUS, 0, 1),
    b"reload": (RELOAD, 0, 0), b"shutdown": (SHUTDOWN, 0, 0), b"monitor": (MONITOR, 0, 3), b"confirm": (CONFIRM, 0, 2),
    b"mn": (MN, 0, 0), b"me": (ME, 0, 2), b"configure": (CONFIGURE, 2, _MAX_WORDS),
}


@cython.final
cdef class Parser:
    """Cuts a byte stream into requests.

    `feed` it what arrived, then iterate: each step parses and returns one request, and the iteration
    ends where more bytes are needed. It keeps bytes not yet parsed, so a caller may stop iterating at any
    request and go on later. Besides what was fed, it keeps one line and one chunk at most.
    """

    def __cinit__(self):
        self._buffer = b""
        self._state = _LINE

    cpdef void feed(self, bytes data):
        """Take bytes from the network, which may end anywhere in a request."""
        if self._at >= PyBytes_GET_SIZE(self._buffer):
            self._buffer = data
        else:
            self._buffer = self._buffer[self._at:] + data
        self._at = 0

    @property
    def unparsed_bytes(self):
        """The number of bytes that were fed and are not parsed yet."""
        return PyBytes_GET_SIZE(self._buffer) - self._at

    @property
    def in_block(self):
        """Whether a data block has begun and not ended."""
        return self._state in (_BODY, _STREAM, _SWALLOW)

    def __iter__(self):
        return self

    def __next__(self):
        cdef Request request = self.next_request()
        if request is None:
            raise StopIteration
        return request

    cpdef Request next_request(self):
        """Return the next request; None if more bytes are needed."""
        if self._state == _LINE:
            return self.next_line()
        if self._state == _BODY:
            return self.finish_body()
        if self._state == _STREAM:
            return self.next_chunk()
        if self._state == _SWALLOW:
            return self.swallow()
        if self._state == _KEYS:
            return self.next_keys()
        if self._state == _KEYS_END:
            self._state = _LINE
            return new_request(GET_END)
        return None

    cpdef void skip_keys(self):
        """Skip the rest of a long get: no more keys and no GET_END are returned."""
        if self._state == _KEYS:
            self._skips = True
        elif self._state == _KEYS_END:
            self._state = _LINE

    cdef Request leave(self, int verb):
        """Read nothing more, for the client speaks another protocol; returns the request that says so."""
        self.fail(None, False)
        return new_request(verb)

    cdef Request fail(self, bytes error, bint noreply):
        self._state = _CLOSED
        self._buffer = b""
        self._at = 0
        self._set = None
        self._body = None
        return new_error(FATAL, error, noreply)

    cdef Request next_line(self):
        cdef:
            const char* at = PyBytes_AS_STRING(self._buffer) + self._at
            Py_ssize_t left = PyBytes_GET_SIZE(self._buffer) - self._at
            const char* newline
            Py_ssize_t size
        if left == 0:
            return None
        if not self._started:
            self._started = True
            if <uint8_t>at[0] == 0x80:
                return self.leave(BINARY)
            if at[0] == 0x16:
                return self.leave(TLS)
        # two bytes for the line end
        newline = <const char*>memchr(at, c"\n", left if left < _MAX_LINE + 2 else _MAX_LINE + 2)
        if newline == NULL:
            if left >= _MAX_LINE + 2:
                return self.begin_keys(at, left)
            return None
        size = newline - at
        if size and at[size - 1] == c"\r":
            size -= 1
        if size > _MAX_LINE:
            return self.begin_keys(at, left)
        self._at += newline - at + 1
        return self.parse_line(at, size)

    cdef Request begin_keys(self, const char* at, Py_ssize_t left):
        """Begin the keys of a long get, which come in runs. Fails if another verb has such a long line."""
        cdef:
            const char* newline
            Py_ssize_t start = 0, verb = 0, end
            Request request
        while start < _MAX_LINE and at[start] == c" ":
            start += 1
        while start + verb < _MAX_LINE and verb < 5 and at[start + verb] not in b" \n":
            verb += 1
        cdef Word word = Word(at + start, verb)
        if at[start + verb] != c" " or not (
                (verb == 3 and starts_as(&word, b"get", 3)) or (verb == 4 and starts_as(&word, b"gets", 4))):
            return self.fail(E_LINE_TOO_LONG, False)
        newline = <const char*>memchr(at, c"\n", left if left < _MAX_WHOLE_LINE + 2 else _MAX_WHOLE_LINE + 2)
        if newline == NULL and left < _MAX_WHOLE_LINE + 2:
            return None
        start += verb
        if newline != NULL:
            end = newline - at
            if end and at[end - 1] == c"\r":
                end -= 1
            request = self.look_over(at + start, end - start, GETS if verb == 4 else GET)
            if request is not None:
                if self._state != _CLOSED:
                    self._at += newline - at + 1
                return request
        self._at += start
        self._line_bytes = start
        self._keys = 0
        self._verb = GETS if verb == 4 else GET
        self._skips = False
        self._state = _KEYS
        return self.next_keys()

    cdef Request look_over(self, const char* at, Py_ssize_t size, int verb):
        """Check the keys of a whole line, which ends before `at + size`. Returns an error if one is wrong, the request
        if there is a single key, or if all of them wait; else None."""
        cdef:
            Py_ssize_t i = 0, n = 0
            Word words[2]
            Word* word = &words[1]
            Request request, first = None
            bytes error = None
        while True:
            while i < size and at[i] == c" ":
                i += 1
            if i == size:
                break
            word.at = at + i
            while i < size and at[i] != c" ":
                i += 1
            word.size = at + i - word.at
            n += 1
            if error is None:
                request = new_request(verb)
                request.with_cas = verb == GETS
                error = E_LINE_TOO_LONG if word.size > _MAX_LINE else parse_get_key(request, word)
                if first is None:
                    first = request
                    first.rest = []
                elif waits_otherwise(request, first):
                    error = error or E_WAIT_MANY
                elif first.waits:
                    first.rest.append(request)
        if n and ends_as_http(word):
            return self.leave(HTTP)
        if error is E_LINE_TOO_LONG:
            return self.fail(error, False)
        if n < 2:
            return parse_get(words, n + 1, verb)
        if error is not None:
            return new_error(REFUSED, error, False)
        first.waits_on_any = first.waits
        return first if first.waits else None

    cdef Request next_keys(self):
        """Return the next run of keys of a long get, once it has come as a whole."""
        cdef:
            const char* at
            Py_ssize_t left, i, start, n
            Word words[_RUN_KEYS + 1]
            Word* word
            bint ended
            Request request
        while True:
            at = PyBytes_AS_STRING(self._buffer) + self._at
            left = PyBytes_GET_SIZE(self._buffer) - self._at
            i = n = 0
            ended = False
            while n < _RUN_KEYS and not ended and i < _RUN_BYTES:
                while i < left and i < _RUN_BYTES and at[i] == c" ":
                    i += 1
                if i == _RUN_BYTES:
                    break
                start = i
                # one byte more for the line end
                while i < left and i - start < _MAX_LINE + 2 and at[i] not in b" \n":
                    i += 1
                if self._line_bytes + i > _MAX_GET_LINE + 1:
                    return self.fail(E_LINE_TOO_LONG, False)
                if i - start == _MAX_LINE + 2:
                    return self.fail(E_LINE_TOO_LONG, False)
                if i == left:
                    return None
                ended = at[i] == c"\n"
                word = &words[n + 1]
                word.at = at + start
                word.size = i - start
                if ended and word.size and at[i - 1] == c"\r":
                    word.size -= 1
                if word.size > _MAX_LINE or self._line_bytes + (word.at + word.size - at) > _MAX_GET_LINE:
                    return self.fail(E_LINE_TOO_LONG, False)
                n += word.size > 0
            self._at += i + ended
            self._line_bytes += i
            self._keys += n
            if ended:
                self._state = _KEYS_END
                if n and ends_as_http(&words[n]):
                    return self.leave(HTTP)
            if self._skips:
                if ended:
                    self._state = _LINE
                    return self.next_line()
            elif not self._keys and ended:
                self._state = _LINE
                return new_error(REFUSED, E_BAD_FORMAT, False)
            elif n:
                request = parse_get(words, n + 1, self._verb)
                if request.verb == REFUSED:
                    self.skip_keys()
                elif request.waits:
                    self.skip_keys()
                    request = new_error(REFUSED, E_WAIT_LINE, False)
                else:
                    request.is_run = True
                    if request.rest is None:
                        request.rest = []
                return request
            elif ended:
                self._state = _LINE
                return new_request(GET_END)

    cdef Request parse_line(self, const char* at, Py_ssize_t size):
        cdef:
            Word words[_MAX_WORDS]
            char verb[18]
            Py_ssize_t n = split_words(at, size, words)
            int length
            bytes name
        if n == 0:
            return new_error(REFUSED, E_UNKNOWN, False)
        if (n > 1 and ends_as_http(&words[n - 1])) or starts_as(&words[0], b"host:", 5):
            return self.leave(HTTP)
        length = lower_verb(&words[0], verb)
        if length == 3 and memcmp(verb, b"get", 3) == 0:
            return parse_get(words, n, GET)
        if length == 3 and memcmp(verb, b"set", 3) == 0:
            return self.begin_block(words, n, None)
        if length == 4 and memcmp(verb, b"gets", 4) == 0:
            return parse_get(words, n, GETS)
        name = PyBytes_FromStringAndSize(verb, length)
        if name == b"mg" or name == b"md":
            return parse_meta(name, words, n)
        if name == b"ms":
            return self.begin_meta_block(words, n)
        if name in COLD:
            number, noreply_from, most = COLD[name]
            return parse_cold(number, words, n, noreply_from or n, most)
        if name in UNSUPPORTED:
            error, has_block = UNSUPPORTED[name]
            if has_block:
                return self.begin_block(words, n, error)
            return new_error(REFUSED, error, word_is(&words[n - 1], b"noreply", 7))
        if may_have_block(words, n):
            return self.fail(E_UNKNOWN, False)
        return new_error(REFUSED, E_UNKNOWN, False)

    cdef Request begin_block(self, Word* words, Py_ssize_t n, bytes refusal):
        cdef uint64_t size = 0
        cdef bint noreply = word_is(&words[n - 1], b"noreply", 7)
        if n < 5 or not read_u64(words[4].at, words[4].size, &size):
            # without a length, data cannot be told from commands
            return self.fail(E_BAD_FORMAT, noreply)
        if refusal is not None:
            self._set = new_error(REFUSED, refusal, noreply)
        else:
            self._set = parse_set(words, n)
        return self.begin_data(size)

    cdef Request begin_meta_block(self, Word* words, Py_ssize_t n):
        cdef uint64_t size = 0
        if n < 3 or not read_u64(words[2].at, words[2].size, &size):
            return self.fail(E_BAD_FORMAT, False)
        self._set = parse_meta_set(words, n)
        return self.begin_data(size)

    cdef Request begin_data(self, uint64_t size):
        self._set.size = size
        self._left = size
        if self._set.verb == REFUSED:
            self._state = _SWALLOW
            return self.swallow()
        if size > _CHUNK:
            self._state = _STREAM
            self._set.verb = SET_BEGIN
            return self._set
        self._state = _BODY
        return self.finish_body()

    cdef int block_end(self):
        """Read the line end behind a data block: returns 1 if it is there, 0 if not yet, -1 if it is not a line end."""
        cdef const char* at = PyBytes_AS_STRING(self._buffer) + self._at
        cdef Py_ssize_t left = PyBytes_GET_SIZE(self._buffer) - self._at
        if left and at[0] != c"\r":
            return -1
        if left < 2:
            return 0
        if at[1] != c"\n":
            return -1
        self._at += 2
        return 1

    cdef bint fill(self, Py_ssize_t gap, Py_ssize_t size):
        """Read the next `size` bytes of the data block into `_body`, behind `gap` bytes that are left free; returns
        whether all have come. They are copied as they come, so that a slow sender costs no more than a fast one."""
        cdef:
            const char* at = PyBytes_AS_STRING(self._buffer) + self._at
            Py_ssize_t left = PyBytes_GET_SIZE(self._buffer) - self._at
            Py_ssize_t n
        if self._body is None:
            self._body = PyBytes_FromStringAndSize(NULL, gap + size)
            self._filled = gap
        n = gap + size - self._filled
        if n > left:
            n = left
        memcpy(PyBytes_AS_STRING(self._body) + self._filled, at, n)
        self._filled += n
        self._at += n
        self._left -= n
        return self._filled == gap + size

    cdef Request finish_body(self):
        cdef Request request = self._set
        cdef int end
        if self._left or self._body is None:
            if not self.fill(_RECORD_HEAD, <Py_ssize_t>request.size):
                return None
        end = self.block_end()
        if end == 0:
            return None
        if end < 0:
            return self.fail(E_BAD_DATA, request.noreply)
        request.record = self._body
        self._body = None
        self._set = None
        self._state = _LINE
        return request

    cdef Request next_chunk(self):
        cdef Request request
        cdef int end
        cdef Py_ssize_t size
        if self._left:
            if self._body is None:
                size = _CHUNK if self._left > _CHUNK else <Py_ssize_t>self._left
            else:
                size = PyBytes_GET_SIZE(self._body)
            if not self.fill(0, size):
                return None
            request = new_request(SET_CHUNK)
            request.chunk = self._body
            self._body = None
            return request
        end = self.block_end()
        if end == 0:
            return None
        if end < 0:
            return self.fail(E_BAD_DATA, self._set.noreply)
        request = new_request(SET_END)
        request.noreply = self._set.noreply
        self._set = None
        self._state = _LINE
        return request

    cdef Request swallow(self):
        cdef Py_ssize_t left = PyBytes_GET_SIZE(self._buffer) - self._at
        cdef Request request = self._set
        cdef int end
        if <uint64_t>left < self._left:
            self._left -= left
            self._at += left
            return None
        self._at += <Py_ssize_t>self._left
        self._left = 0
        end = self.block_end()
        if end == 0:
            return None
        if end < 0:
            return self.fail(E_BAD_DATA, request.noreply)
        self._set = None
        self._state = _LINE
        return request


# Replies

cdef Py_ssize_t write_u64(char* out, uint64_t n) noexcept:
    cdef char digits[20]
    cdef Py_ssize_t size = 0, i
    while True:
        digits[size] = 48 + <char>(n % 10)
        size += 1
        n //= 10
        if n == 0:
            break
    for i in range(size):
        out[i] = digits[size - 1 - i]
    return size


cdef Py_ssize_t write_value_line(char* out, bytes key, uint32_t flags, uint64_t size, uint64_t cas) noexcept:
    cdef Py_ssize_t n = 6
    memcpy(out, b"VALUE ", 6)
    memcpy(out + n, PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
    n += PyBytes_GET_SIZE(key)
    out[n] = c" "
    n += 1
    n += write_u64(out + n, flags)
    out[n] = c" "
    n += 1
    n += write_u64(out + n, size)
    if cas:
        out[n] = c" "
        n += 1
        n += write_u64(out + n, cas)
    memcpy(out + n, b"\r\n", 2)
    return n + 2


def value_header(bytes key not None, uint32_t flags, uint64_t size, uint64_t cas):
    """Return `VALUE <key> <flags> <size>[ <cas>]` and a line end; without a cas token if `cas` is 0."""
    cdef char line[_MAX_LINE + 80]
    if PyBytes_GET_SIZE(key) > _MAX_LINE:
        raise ValueError("key longer than a line")
    return PyBytes_FromStringAndSize(line, write_value_line(line, key, flags, size, cas))


cpdef bytes value(bytes key, Item item, bint with_cas, bint last):
    """Return the whole `VALUE` reply for an item whose bytes are in memory, with `END` behind it if `last`."""
    cdef:
        char line[_MAX_LINE + 80]
        Py_ssize_t header, size = <Py_ssize_t>item.size, tail = 7 if last else 2
        bytes reply
        char* out
    if PyBytes_GET_SIZE(key) > _MAX_LINE:
        raise ValueError("key longer than a line")
    header = write_value_line(line, key, item.flags, item.size, token_of(item) if with_cas else 0)
    reply = PyBytes_FromStringAndSize(NULL, header + size + tail)
    out = PyBytes_AS_STRING(reply)
    memcpy(out, line, header)
    memcpy(out + header, PyBytes_AS_STRING(item.record) + _RECORD_HEAD, size)
    memcpy(out + header + size, b"\r\nEND\r\n", tail)
    return reply


cdef extern from "<sys/socket.h>":
    ssize_t c_send "send"(int descriptor, const void* data, size_t size, int flags)
    int MSG_NOSIGNAL


cpdef Py_ssize_t send(int descriptor, bytes data) except -1:
    """Write to a non-blocking socket; returns how many bytes it took. Raises BlockingIOError if it took none, OSError
    if the connection is closed.

    Unlike os.write this keeps the GIL: releasing it and taking it back costs more than the call.
    """
    cdef ssize_t sent = c_send(descriptor, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), MSG_NOSIGNAL)
    if sent < 0:
        PyErr_SetFromErrno(OSError)
    return sent
