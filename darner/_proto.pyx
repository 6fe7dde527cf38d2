# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The compiled hot paths: bytes to requests, items to replies, keys and records to bytes and back.

No socket, no queue and no clock in here. A `Parser` is fed whatever the network delivered and is
then iterated: each step gives one `Request`, and stops where the bytes end. What a request means is
decided in commands.py; what is a request, and where the next one begins, is decided here alone.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy

from zlib import crc32

__all__ = [
    "CHUNK_BYTES", "Item", "MAX_LINE_BYTES", "MAX_NAME_BYTES", "Parser", "Request", "State",
    "Verb", "blob_of", "decode_chunk", "decode_ids", "decode_item", "decode_state", "encode_chunk",
    "encode_ids", "encode_item", "encode_state", "item_key", "marker_key", "valid_name", "value",
    "value_header",
]

cdef enum:
    # From the wire contract. memcached allows 2,048 bytes for a line and 250 for a key too.
    _MAX_LINE = 2048
    _MAX_NAME = 250
    # Items above this are cut into chunks of this size, on the wire and on disk: docs/design.md has
    # the measurement.
    _CHUNK = 65536
    # A line of 2,048 bytes holds at most 1,024 words of one byte each.
    _MAX_WORDS = 1025
    # Longer than any wait a client means (24 days), and short enough for every timer.
    _MAX_TIMEOUT_MS = 0x7fffffff

MAX_LINE_BYTES = _MAX_LINE
MAX_NAME_BYTES = _MAX_NAME
CHUNK_BYTES = _CHUNK


cpdef enum Verb:
    GET
    GETS
    SET
    # An item above CHUNK_BYTES arrives as SET_BEGIN, as many SET_CHUNK as it takes, SET_END.
    SET_BEGIN
    SET_CHUNK
    SET_END
    # Not served, for the reason in `error`; its data block, if it had one, was swallowed.
    REFUSED
    # As REFUSED, and the next request cannot be found: reply and close.
    FATAL
    # The client speaks memcache's binary protocol: close.
    BINARY
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


cdef enum:
    _OPEN = 1
    _CLOSE = 2
    _ABORT = 4
    _PEEK = 8
    _WAIT = 16
    _SYNC = 32

cdef bytes E_UNKNOWN = b"ERROR\r\n"
cdef bytes E_LINE_TOO_LONG = b"CLIENT_ERROR line too long\r\n"
cdef bytes E_BAD_FORMAT = b"CLIENT_ERROR bad command line format\r\n"
cdef bytes E_BAD_DATA = b"CLIENT_ERROR bad data chunk\r\n"
cdef bytes E_BAD_NAME = (
    b"CLIENT_ERROR bad queue name: 1 to 250 bytes without space, control character or /\r\n")
cdef bytes E_GET_OPTION = b"CLIENT_ERROR unknown option: get takes t=<ms> open close abort peek cursor=<name>\r\n"
cdef bytes E_SET_OPTION = b"CLIENT_ERROR unknown option: set takes sync delay=<ms>\r\n"
cdef bytes E_TIMEOUT = b"CLIENT_ERROR bad timeout: t takes milliseconds\r\n"
cdef bytes E_DELAY = b"CLIENT_ERROR bad delay: delay takes milliseconds\r\n"
cdef bytes E_ABORT = b"CLIENT_ERROR abort must be by itself\r\n"
cdef bytes E_PEEK = b"CLIENT_ERROR cannot open and peek\r\n"
cdef bytes E_WAIT_MANY = b"CLIENT_ERROR cannot wait on several queues\r\n"


@cython.final
@cython.no_gc
@cython.freelist(256)
cdef class Request:
    """One request of a client, as parsed. Which fields count depends on `verb`."""
    cdef:
        readonly int verb
        readonly bint noreply
        readonly int options
        readonly uint32_t flags
        readonly int64_t exptime
        readonly uint64_t size
        readonly uint64_t timeout_ms
        readonly uint64_t delay_ms
        readonly bytes key
        readonly bytes queue
        readonly bytes data
        readonly bytes error
        readonly list args
        readonly list rest

    @property
    def open(self):
        return (self.options & _OPEN) != 0

    @property
    def close(self):
        return (self.options & _CLOSE) != 0

    @property
    def abort(self):
        return (self.options & _ABORT) != 0

    @property
    def peek(self):
        return (self.options & _PEEK) != 0

    @property
    def fetches(self):
        """Whether it goes on to fetch an item once it has closed or aborted what was held."""
        return (self.options & (_OPEN | _PEEK)) != 0 or (self.options & (_CLOSE | _ABORT)) == 0

    @property
    def with_cas(self):
        """Whether it asks for the items' ids."""
        return self.verb == GETS

    @property
    def sync(self):
        return (self.options & _SYNC) != 0


cdef inline Request new_request(int verb):
    cdef Request request = Request.__new__(Request)
    request.verb = verb
    return request


cdef inline Request new_error(int verb, bytes error, bint noreply):
    cdef Request request = new_request(verb)
    request.error = error
    request.noreply = noreply
    return request


cdef struct Word:
    const char* at
    Py_ssize_t size


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
    """Whether `name` may name a queue: 1 to 250 bytes without space, control character or `/`."""
    return name_is_valid(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))


cdef bint read_u64(const char* at, Py_ssize_t size, uint64_t* out) noexcept:
    """Decimal digits only. 18 of them always fit; no client means more."""
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


cdef bint read_i64(const char* at, Py_ssize_t size, int64_t* out) noexcept:
    cdef uint64_t n = 0
    cdef bint negative = size > 0 and at[0] == c"-"
    if not read_u64(at + negative, size - negative, &n):
        return False
    out[0] = -<int64_t>n if negative else <int64_t>n
    return True


cdef Py_ssize_t split_words(const char* at, Py_ssize_t size, Word* words) noexcept:
    """Cut at runs of spaces; returns how many words there are."""
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


cdef int lower_verb(Word* word, char* out) noexcept:
    """The verb in lower case, and its length; 0 if it is longer than any verb there is."""
    cdef Py_ssize_t i
    cdef char c
    if word.size > 17:
        return 0
    for i in range(word.size):
        c = word.at[i]
        out[i] = c + 32 if c"A" <= c <= c"Z" else c
    return <int>word.size


cdef bytes parse_get_key(Request request, Word* word):
    """Fill in key, queue and options from `queue[/option]*`; returns an error or None."""
    cdef:
        const char* at = word.at
        const char* end = word.at + word.size
        const char* slash = <const char*>memchr(at, c"/", word.size)
        Py_ssize_t size
        int options = 0
        bytes cursor = None
        Word option
    request.key = word_bytes(word)
    size = word.size if slash == NULL else slash - at
    if not name_is_valid(at, size):
        return E_BAD_NAME
    if slash == NULL:
        request.queue = request.key
        return None
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
        elif option.size >= 2 and memcmp(option.at, b"t=", 2) == 0:
            options |= _WAIT
            if not read_u64(option.at + 2, option.size - 2, &request.timeout_ms):
                return E_TIMEOUT
            if request.timeout_ms > <uint64_t>_MAX_TIMEOUT_MS:
                request.timeout_ms = _MAX_TIMEOUT_MS
        elif (cursor is None and option.size > 7 and memcmp(option.at, b"cursor=", 7) == 0
                and name_is_valid(option.at + 7, option.size - 7)):
            cursor = word_bytes(&option)
        else:
            return E_GET_OPTION
    if cursor is not None:
        # what is held of a cursor is not held of the queue
        request.queue += b"/" + cursor
    if options & _ABORT and options != _ABORT:
        return E_ABORT
    if options & _OPEN and options & _PEEK:
        return E_PEEK
    request.options = options
    return None


cdef bytes parse_set_key(Request request, Word* word):
    """Fill in queue and options from `queue[/sync][/delay=<ms>]`; returns an error or None."""
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
            request.options = _SYNC
        elif option.size >= 6 and memcmp(option.at, b"delay=", 6) == 0:
            if not read_u64(option.at + 6, option.size - 6, &request.delay_ms):
                return E_DELAY
        else:
            return E_SET_OPTION
    return None


cdef Request parse_get(Word* words, Py_ssize_t n, int verb):
    cdef Request first = new_request(verb), other
    cdef Py_ssize_t i
    cdef bytes error
    if n < 2:
        return new_error(REFUSED, E_BAD_FORMAT, False)
    error = parse_get_key(first, &words[1])
    if error is None and n > 2:
        first.rest = []
        for i in range(2, n):
            other = new_request(verb)
            error = parse_get_key(other, &words[i])
            if error is None and (first.options | other.options) & _WAIT:
                error = E_WAIT_MANY
            if error is not None:
                break
            first.rest.append(other)
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


cdef Request parse_cold(int verb, Word* words, Py_ssize_t n, Py_ssize_t noreply_from):
    """A verb off the hot path: its words go up as they are. `noreply` counts as such only as the last
    word and with `noreply_from` words before it, so that it can still be the name of a queue."""
    cdef Request request = new_request(verb)
    cdef Py_ssize_t i
    if n > noreply_from and word_is(&words[n - 1], b"noreply", 7):
        request.noreply = True
        n -= 1
    request.args = []
    for i in range(1, n):
        request.args.append(word_bytes(&words[i]))
    if verb == MONITOR and n > 1:
        # it is answered as a get
        request.key = request.queue = request.args[0]
    return request


cdef enum:
    # Where the parser stands: at the start of a line, inside a data block that goes up whole, inside
    # one that goes up in chunks, inside one that is thrown away, or past the point of no return.
    _LINE
    _BODY
    _STREAM
    _SWALLOW
    _CLOSED

# A bare verb that is not for queues: how it is named in the refusal, and whether a data block follows.
cdef dict UNSUPPORTED = {
    verb: (b"CLIENT_ERROR " + verb + b" is not supported\r\n", has_block)
    for verb, has_block in (
        (b"add", True), (b"replace", True), (b"append", True), (b"prepend", True), (b"cas", True),
        (b"touch", False), (b"incr", False), (b"decr", False),
    )
}

cdef dict COLD = {
    # verb: (its number, how many words come before a noreply; 0 if it has none)
    b"delete": (DELETE, 2), b"flush": (FLUSH, 2), b"flush_all": (FLUSH_ALL, 1),
    b"flush_expired": (FLUSH_EXPIRED, 0), b"flush_all_expired": (FLUSH_ALL_EXPIRED, 0), b"stats": (STATS, 0),
    b"version": (VERSION, 0), b"verbosity": (VERBOSITY, 2), b"quit": (QUIT, 0),
    b"dump_stats": (DUMP_STATS, 0), b"dump_config": (DUMP_CONFIG, 0), b"status": (STATUS, 0),
    b"reload": (RELOAD, 0), b"shutdown": (SHUTDOWN, 0), b"monitor": (MONITOR, 0), b"confirm": (CONFIRM, 0),
}


@cython.final
cdef class Parser:
    """Cuts a byte stream into requests.

    `feed` it what arrived, then iterate: each step parses and returns one request, and the iteration
    ends where more bytes are needed. Bytes not yet parsed stay inside, so a caller may stop iterating
    at any request and go on later. At most one line and one chunk are held besides what was fed.
    """
    cdef:
        bytes _buffer
        Py_ssize_t _at
        int _state
        bint _started
        Request _set            # whose data block is being read
        bytes _body             # of the block or chunk being read
        Py_ssize_t _filled      # bytes of _body read so far
        uint64_t _left          # bytes of the data block not yet read

    def __cinit__(self):
        self._buffer = b""
        self._state = _LINE

    def feed(self, bytes data not None):
        """Take in bytes from the network, in any cut."""
        if self._at >= PyBytes_GET_SIZE(self._buffer):
            self._buffer = data
        else:
            self._buffer = self._buffer[self._at:] + data
        self._at = 0

    @property
    def unparsed_bytes(self):
        """How many bytes were fed and not yet parsed."""
        return PyBytes_GET_SIZE(self._buffer) - self._at

    @property
    def in_block(self):
        """Whether a data block has begun and not ended."""
        return self._state not in (_LINE, _CLOSED)

    def __iter__(self):
        return self

    def __next__(self):
        cdef Request request = self.next_request()
        if request is None:
            raise StopIteration
        return request

    cdef Request next_request(self):
        if self._state == _LINE:
            return self.next_line()
        if self._state == _BODY:
            return self.finish_body()
        if self._state == _STREAM:
            return self.next_chunk()
        if self._state == _SWALLOW:
            return self.swallow()
        return None

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
                self.fail(None, False)
                return new_request(BINARY)
        # two bytes for the line end
        newline = <const char*>memchr(at, c"\n", left if left < _MAX_LINE + 2 else _MAX_LINE + 2)
        if newline == NULL:
            if left >= _MAX_LINE + 2:
                return self.fail(E_LINE_TOO_LONG, False)
            return None
        size = newline - at
        self._at += size + 1
        if size and at[size - 1] == c"\r":
            size -= 1
        if size > _MAX_LINE:
            return self.fail(E_LINE_TOO_LONG, False)
        return self.parse_line(at, size)

    cdef Request parse_line(self, const char* at, Py_ssize_t size):
        cdef:
            Word words[_MAX_WORDS]
            char verb[18]
            Py_ssize_t n = split_words(at, size, words)
            int length
            bytes name
        if n == 0:
            return new_error(REFUSED, E_UNKNOWN, False)
        length = lower_verb(&words[0], verb)
        if length == 3 and memcmp(verb, b"get", 3) == 0:
            return parse_get(words, n, GET)
        if length == 3 and memcmp(verb, b"set", 3) == 0:
            return self.begin_block(words, n, None)
        if length == 4 and memcmp(verb, b"gets", 4) == 0:
            return parse_get(words, n, GETS)
        name = PyBytes_FromStringAndSize(verb, length)
        if name in COLD:
            number, noreply_from = COLD[name]
            return parse_cold(number, words, n, noreply_from or n)
        if name in UNSUPPORTED:
            error, has_block = UNSUPPORTED[name]
            if has_block:
                return self.begin_block(words, n, error)
            return new_error(REFUSED, error, word_is(&words[n - 1], b"noreply", 7))
        return new_error(REFUSED, E_UNKNOWN, False)

    cdef Request begin_block(self, Word* words, Py_ssize_t n, bytes refusal):
        cdef uint64_t size = 0
        cdef bint noreply = word_is(&words[n - 1], b"noreply", 7)
        if n < 5 or not read_u64(words[4].at, words[4].size, &size):
            # without a length there is no telling data from commands
            return self.fail(E_BAD_FORMAT, noreply)
        if refusal is not None:
            self._set = new_error(REFUSED, refusal, noreply)
        else:
            self._set = parse_set(words, n)
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
        """Reads the line end behind a data block: 1 if it is there, 0 if not yet, -1 if something else is."""
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

    cdef bint fill(self, Py_ssize_t size):
        """Reads the next `size` bytes of the data block into `_body`: at once if they are all there,
        else bit by bit as they come, so that a slow sender costs no more copying than a fast one."""
        cdef:
            const char* at = PyBytes_AS_STRING(self._buffer) + self._at
            Py_ssize_t left = PyBytes_GET_SIZE(self._buffer) - self._at
            Py_ssize_t n
        if self._body is None:
            if left >= size:
                self._body = PyBytes_FromStringAndSize(at, size)
                self._filled = size
                self._at += size
                self._left -= size
                return True
            self._body = PyBytes_FromStringAndSize(NULL, size)
            self._filled = 0
        n = size - self._filled
        if n > left:
            n = left
        memcpy(PyBytes_AS_STRING(self._body) + self._filled, at, n)
        self._filled += n
        self._at += n
        self._left -= n
        return self._filled == size

    cdef Request finish_body(self):
        cdef Request request = self._set
        cdef int end
        if self._left or self._body is None:
            if not self.fill(<Py_ssize_t>request.size):
                return None
        end = self.block_end()
        if end == 0:
            return None
        if end < 0:
            return self.fail(E_BAD_DATA, request.noreply)
        request.data = self._body
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
            if not self.fill(size):
                return None
            request = new_request(SET_CHUNK)
            request.data = self._body
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
    """`VALUE <key> <flags> <size>[ <cas>]` and its line end; no cas token if `cas` is 0."""
    cdef char line[_MAX_LINE + 80]
    if PyBytes_GET_SIZE(key) > _MAX_LINE:
        raise ValueError("key longer than a line")
    return PyBytes_FromStringAndSize(line, write_value_line(line, key, flags, size, cas))


def value(bytes key not None, uint32_t flags, bytes data not None, uint64_t cas, bint last):
    """A whole `VALUE` reply for one item, with `END` behind it if it is the last of its command."""
    cdef:
        char line[_MAX_LINE + 80]
        Py_ssize_t header, size = PyBytes_GET_SIZE(data), tail = 7 if last else 2
        bytes reply
        char* out
    if PyBytes_GET_SIZE(key) > _MAX_LINE:
        raise ValueError("key longer than a line")
    header = write_value_line(line, key, flags, size, cas)
    reply = PyBytes_FromStringAndSize(NULL, header + size + tail)
    out = PyBytes_AS_STRING(reply)
    memcpy(out, line, header)
    memcpy(out + header, PyBytes_AS_STRING(data), size)
    memcpy(out + header + size, b"\r\nEND\r\n", tail)
    return reply


# Keys and records. All numbers are big-endian, so that LevelDB's bytewise order is their order.
# docs/design.md draws each record.

cdef enum:
    _RECORD_VERSION = 1
    _INLINE = 0
    _CHUNKED = 1
    _CRC = 4
    _ITEM_HEADER = 24
    _BLOB_HEADER = 20
    _STATE = 66


cdef inline void put_u32(char* out, uint32_t n) noexcept:
    cdef int i
    for i in range(4):
        out[i] = <char>(n >> (24 - 8 * i))


cdef inline void put_u64(char* out, uint64_t n) noexcept:
    cdef int i
    for i in range(8):
        out[i] = <char>(n >> (56 - 8 * i))


cdef inline uint32_t get_u32(const char* at) noexcept:
    cdef uint32_t n = 0
    cdef int i
    for i in range(4):
        n = n << 8 | <uint8_t>at[i]
    return n


cdef inline uint64_t get_u64(const char* at) noexcept:
    cdef uint64_t n = 0
    cdef int i
    for i in range(8):
        n = n << 8 | <uint8_t>at[i]
    return n


def item_key(uint64_t id):
    """The key of an item's record: `i` and its id."""
    cdef char key[9]
    key[0] = c"i"
    put_u64(key + 1, id)
    return PyBytes_FromStringAndSize(key, 9)


def marker_key(uint64_t blob):
    """The key of the marker that says a blob belongs to no item: `u` and its id."""
    cdef char key[9]
    key[0] = c"u"
    put_u64(key + 1, blob)
    return PyBytes_FromStringAndSize(key, 9)


@cython.final
@cython.no_gc
@cython.freelist(1024)
cdef class Item:
    """An item of a queue. `data` is None and `blob` set if its bytes lie in chunks."""
    cdef:
        public uint64_t id
        readonly uint32_t flags
        readonly uint64_t expires_ms
        readonly uint64_t enqueued_ms
        public uint16_t attempts
        readonly uint64_t size
        readonly bytes data
        readonly uint64_t blob
        readonly uint32_t chunk_bytes

    def __init__(self, uint64_t id, uint32_t flags, uint64_t expires_ms, uint64_t enqueued_ms, bytes data,
                 uint64_t blob=0, uint64_t size=0, uint32_t chunk_bytes=0, uint16_t attempts=0):
        self.id = id
        self.flags = flags
        self.expires_ms = expires_ms
        self.enqueued_ms = enqueued_ms
        self.data = data
        self.blob = blob
        self.size = size if data is None else PyBytes_GET_SIZE(data)
        self.chunk_bytes = chunk_bytes
        self.attempts = attempts

    def copy(self):
        """Another one with the same in it."""
        return Item(self.id, self.flags, self.expires_ms, self.enqueued_ms, self.data, self.blob, self.size,
                    self.chunk_bytes, self.attempts)

    @property
    def memory_bytes(self):
        """How many of its bytes are in memory: all, or none if they lie in chunks."""
        return 0 if self.data is None else self.size

    @property
    def chunks(self):
        """How many chunks hold its bytes."""
        return (self.size + self.chunk_bytes - 1) // self.chunk_bytes if self.blob else 0


def encode_item(Item item not None):
    """The record of an item: checksum, header, then its bytes or where its chunks are."""
    cdef:
        bytes header = PyBytes_FromStringAndSize(NULL, _ITEM_HEADER)
        bytes body, record
        char* out = PyBytes_AS_STRING(header)
        Py_ssize_t size
    out[0] = _RECORD_VERSION
    out[1] = _CHUNKED if item.blob else _INLINE
    out[2] = <char>(item.attempts >> 8)
    out[3] = <char>item.attempts
    put_u32(out + 4, item.flags)
    put_u64(out + 8, item.expires_ms)
    put_u64(out + 16, item.enqueued_ms)
    if item.blob:
        body = PyBytes_FromStringAndSize(NULL, _BLOB_HEADER)
        out = PyBytes_AS_STRING(body)
        put_u64(out, item.blob)
        put_u64(out + 8, item.size)
        put_u32(out + 16, item.chunk_bytes)
    else:
        body = item.data
    size = PyBytes_GET_SIZE(body)
    record = PyBytes_FromStringAndSize(NULL, _CRC + _ITEM_HEADER + size)
    out = PyBytes_AS_STRING(record)
    # the id takes part, so that a record under another's key is found out
    put_u32(out, crc32(body, crc32(header, <uint32_t>item.id)))
    memcpy(out + _CRC, PyBytes_AS_STRING(header), _ITEM_HEADER)
    memcpy(out + _CRC + _ITEM_HEADER, PyBytes_AS_STRING(body), size)
    return record


def decode_item(bytes key not None, bytes record not None):
    """The item in a record. ValueError if the record is damaged or of an unknown version."""
    cdef:
        const char* at = PyBytes_AS_STRING(record)
        Py_ssize_t size = PyBytes_GET_SIZE(record) - _CRC - _ITEM_HEADER
        bytes header, body
        uint64_t id
        Item item
    if PyBytes_GET_SIZE(key) != 9 or size < 0:
        raise ValueError("item record cut short")
    id = get_u64(PyBytes_AS_STRING(key) + 1)
    header = PyBytes_FromStringAndSize(at + _CRC, _ITEM_HEADER)
    body = PyBytes_FromStringAndSize(at + _CRC + _ITEM_HEADER, size)
    if get_u32(at) != <uint32_t>crc32(body, crc32(header, <uint32_t>id)):
        raise ValueError(f"item {id} fails its checksum")
    at = PyBytes_AS_STRING(header)
    if at[0] != _RECORD_VERSION:
        raise ValueError(f"item {id} has record version {<int>at[0]}, this darner knows {_RECORD_VERSION}")
    item = Item.__new__(Item)
    item.id = id
    item.attempts = <uint16_t>(<uint8_t>at[2] << 8 | <uint8_t>at[3])
    item.flags = get_u32(at + 4)
    item.expires_ms = get_u64(at + 8)
    item.enqueued_ms = get_u64(at + 16)
    if at[1] == _CHUNKED:
        if size != _BLOB_HEADER:
            raise ValueError(f"item {id} is chunked, and does not say where")
        at = PyBytes_AS_STRING(body)
        item.blob = get_u64(at)
        item.size = get_u64(at + 8)
        item.chunk_bytes = get_u32(at + 16)
    else:
        item.data = body
        item.size = size
    return item


def blob_of(bytes key not None, bytes record not None):
    """The blob that an item's record points to, or 0. ValueError if such a record is damaged."""
    if PyBytes_GET_SIZE(record) < _CRC + 2 or PyBytes_AS_STRING(record)[_CRC + 1] != _CHUNKED:
        return 0
    return decode_item(key, record).blob


def encode_chunk(bytes data not None):
    """The record of a chunk: checksum, then its bytes."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
    cdef bytes record = PyBytes_FromStringAndSize(NULL, _CRC + size)
    cdef char* out = PyBytes_AS_STRING(record)
    put_u32(out, crc32(data))
    memcpy(out + _CRC, PyBytes_AS_STRING(data), size)
    return record


def decode_chunk(bytes record not None):
    """The bytes of a chunk. ValueError if they fail the checksum."""
    cdef bytes data
    if PyBytes_GET_SIZE(record) < _CRC:
        raise ValueError("chunk cut short")
    data = PyBytes_FromStringAndSize(PyBytes_AS_STRING(record) + _CRC, PyBytes_GET_SIZE(record) - _CRC)
    if get_u32(PyBytes_AS_STRING(record)) != <uint32_t>crc32(data):
        raise ValueError("chunk fails its checksum")
    return data


@cython.final
@cython.no_gc
cdef class State:
    """What a journal must know at start without looking at its items; written with every batch.

    `floor`: no item below it is live but the kept ones. `trimmed`: nothing is left to delete below it.
    `next_id`, `next_blob`: the ids to give out next. `items`, `bytes`: what is live, reserved included.
    `batch`: the number of the batch this came with. `created_ms`: when the queue was made.
    """
    cdef:
        public uint64_t batch
        public uint64_t floor
        public uint64_t trimmed
        public uint64_t next_id
        public uint64_t next_blob
        public uint64_t items
        public uint64_t bytes
        public uint64_t created_ms
        public bint deleted

    def __init__(self, uint64_t created_ms):
        self.floor = self.trimmed = self.next_id = self.next_blob = 1
        self.created_ms = created_ms

    def add(self, Item item not None):
        """Count a new item in and give it its id; returns that."""
        item.id = self.next_id
        self.next_id += 1
        self.items += 1
        self.bytes += item.size
        return item.id

    def drop(self, Item item not None):
        """Count an item out; returns whether it was the one at the floor, which is now behind it."""
        self.items -= 1
        self.bytes -= item.size
        if item.id != self.floor:
            return False
        self.floor += 1
        return True


def encode_state(State state not None):
    """The record of a journal's state."""
    cdef char out[_STATE]
    cdef bytes body, record
    cdef char* at = out
    at[0] = _RECORD_VERSION
    at[1] = state.deleted
    put_u64(at + 2, state.batch)
    put_u64(at + 10, state.floor)
    put_u64(at + 18, state.trimmed)
    put_u64(at + 26, state.next_id)
    put_u64(at + 34, state.next_blob)
    put_u64(at + 42, state.items)
    put_u64(at + 50, state.bytes)
    put_u64(at + 58, state.created_ms)
    body = PyBytes_FromStringAndSize(at, _STATE)
    return encode_chunk(body)


def decode_state(bytes record not None):
    """The state in a record. ValueError if the record is damaged or of an unknown version."""
    cdef bytes body
    cdef const char* at
    cdef State state = State.__new__(State)
    if PyBytes_GET_SIZE(record) != _CRC + _STATE:
        raise ValueError("state record has the wrong length")
    body = decode_chunk(record)
    at = PyBytes_AS_STRING(body)
    if at[0] != _RECORD_VERSION:
        raise ValueError(f"state has record version {<int>at[0]}, this darner knows {_RECORD_VERSION}")
    state.deleted = at[1]
    state.batch = get_u64(at + 2)
    state.floor = get_u64(at + 10)
    state.trimmed = get_u64(at + 18)
    state.next_id = get_u64(at + 26)
    state.next_blob = get_u64(at + 34)
    state.items = get_u64(at + 42)
    state.bytes = get_u64(at + 50)
    state.created_ms = get_u64(at + 58)
    return state


def encode_ids(list ids not None):
    """The record of a list of ids."""
    cdef bytes body = PyBytes_FromStringAndSize(NULL, 8 * len(ids))
    cdef char* out = PyBytes_AS_STRING(body)
    for id in ids:
        put_u64(out, id)
        out += 8
    return encode_chunk(body)


def decode_ids(bytes record not None):
    """The ids in a record. ValueError if the record is damaged."""
    cdef bytes body = decode_chunk(record)
    cdef const char* at = PyBytes_AS_STRING(body)
    cdef Py_ssize_t i
    return [get_u64(at + 8 * i) for i in range(PyBytes_GET_SIZE(body) // 8)]
