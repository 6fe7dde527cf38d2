# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, auto_pickle=False
"""The compiled hot paths: bytes to requests, items to replies, keys and records to bytes and back.

No queue in here, of clocks but the reading of one, and of sockets but the write of replies. A `Parser` is fed whatever the network delivered and is
then iterated: each step gives one `Request`, and stops where the bytes end. What a request means is
decided in commands.py; what is a request, and where the next one begins, is decided here alone.
"""

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_SetFromErrno
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EFAULT, ENOSPC, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memset
from posix.time cimport clock_gettime, timespec

import os

from darner.errors import NewerFormatError
from darner.meta import Meta

__all__ = [
    "CHUNK_BYTES", "Change", "ITEM_BYTES", "Item", "MAX_GET_LINE_BYTES", "MAX_LINE_BYTES", "MAX_NAME_BYTES", "Parser", "RECORD_HEAD_BYTES", "Request", "Scanned", "Segment", "State",
    "Verb", "blob_of", "checksum", "check_chunk", "copy_record", "decode_chunk", "decode_ids", "decode_item", "decode_state", "encode_chunk",
    "SegmentFormatError", "bus_errors", "encode_ids", "encode_item", "encode_state", "guard_memory", "item_key", "marker_key", "new_item", "populate",
    "read_segment", "segment_head", "send", "share_heap", "since_boot_ms", "trim_memory",
    "valid_name", "value", "value_header",
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
    # One of `get` may be longer: clients ask for hundreds of keys in one line. Above _MAX_LINE its keys come in
    # runs of so many, or of so many bytes.
    _MAX_GET_LINE = 1048576
    _RUN_KEYS = 128
    _RUN_BYTES = 16384
    # Up to here such a line is looked over before its first key is served, so that none is served of a wrong one.
    # A longer one is not held: it is served as it comes.
    _MAX_WHOLE_LINE = 32768
    # What an item costs in memory besides its bytes.
    _ITEM_BYTES = 150
    # A chunk is read as a whole: no record makes anybody take more memory for one.
    _MAX_CHUNK = 16777216
    # More than any file has, and so little that the sizes of many items can be added.
    _MAX_SIZE = 9007199254740992
    # Longer than any wait a client means (24 days), and short enough for every timer.
    _MAX_TIMEOUT_MS = 0x7fffffff

MAX_LINE_BYTES = _MAX_LINE
MAX_GET_LINE_BYTES = _MAX_GET_LINE
MAX_NAME_BYTES = _MAX_NAME
CHUNK_BYTES = _CHUNK
ITEM_BYTES = _ITEM_BYTES
RECORD_HEAD_BYTES = _RECORD_HEAD


cpdef enum Verb:
    GET
    GETS
    # The keys of a long get came in runs, and this is its end.
    GET_END
    SET
    # An item above CHUNK_BYTES arrives as SET_BEGIN, as many SET_CHUNK as it takes, SET_END.
    SET_BEGIN
    SET_CHUNK
    SET_END
    # Not served, for the reason in `error`; its data block, if it had one, was swallowed.
    REFUSED
    # As REFUSED, and the next request cannot be found: reply and close.
    FATAL
    # The client speaks memcache's binary protocol, or TLS, or HTTP: close.
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
    # memcached's meta commands: the others are a GET, a SET or a DELETE with flags in `meta`.
    MN
    ME


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

    @property
    def data(self):
        """The bytes of the item, or of the chunk."""
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


cdef bint is_number(Word* word) noexcept:
    """Whether a word is a decimal number, of any length and with a sign or without."""
    cdef Py_ssize_t i, start = word.at[0] in b"+-"
    for i in range(start, word.size):
        if not c"0" <= word.at[i] <= c"9":
            return False
    return word.size > start


cdef bint starts_as(Word* word, const char* text, Py_ssize_t size) noexcept:
    """Whether a word starts with a text that is in lower case, whatever its own case."""
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
    """Whether that is the last word of the first line of an HTTP request."""
    return word.size > 5 and starts_as(word, b"http/", 5) and c"0" <= word.at[5] <= c"9"


cdef bint may_have_block(Word* words, Py_ssize_t n) noexcept:
    """Whether a line whose verb is not known looks as if a data block followed: it has as many words as a `set`, or a
    number behind what would be the key, as `ms` has, and other protocols (`$9` of Redis is all they say)."""
    cdef Py_ssize_t i
    if n == 1:
        return words[0].size > 1 and words[0].at[0] in b"$*" and c"0" <= words[0].at[1] <= c"9"
    for i in range(2, n):
        if is_number(&words[i]):
            return True
    return n > 4


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
        elif option.size >= 2 and memcmp(option.at, b"t=", 2) == 0:
            request.waits = True
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
    if options & _ABORT and (options != _ABORT or request.waits):
        return E_ABORT
    if options & _OPEN and options & _PEEK:
        return E_PEEK
    request.open = (options & _OPEN) != 0
    request.close = (options & _CLOSE) != 0
    request.abort = (options & _ABORT) != 0
    request.peek = (options & _PEEK) != 0
    request.fetches = request.open or request.peek or not (request.close or request.abort)
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
            request.sync = True
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
    first.with_cas = verb == GETS
    error = parse_get_key(first, &words[1])
    if error is None and n > 2:
        first.rest = []
        for i in range(2, n):
            other = new_request(verb)
            other.with_cas = first.with_cas
            error = parse_get_key(other, &words[i])
            if error is None and (first.waits or other.waits):
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


cdef object parse_flags(bytes verb, Word* words, Py_ssize_t start, Py_ssize_t n):
    """The flags of a meta command, behind its key; or the error that is to be the reply."""
    cdef list found = [word_bytes(&words[1])] if n > 1 else []
    cdef Py_ssize_t i
    for i in range(start, n):
        found.append(word_bytes(&words[i]))
    try:
        return Meta(verb, found)
    except ValueError as error:
        return error.args[0]


cdef Request parse_meta(bytes verb, Word* words, Py_ssize_t n):
    """`mg`, which is a get; `md`, which is a delete, or closes one item."""
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
    """A verb off the hot path: its words go up as they are, `most` of them. `noreply` counts as such only as the last
    word and with `noreply_from` words before it, so that it can still be the name of a queue."""
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
        # it is answered as a get
        request.key = request.queue = request.args[0]
    return request


cdef enum:
    # Where the parser stands: at the start of a line, among the keys of a long get, behind the last of them, inside a
    # data block that goes up whole, inside one that goes up in chunks, inside one that is thrown away, or past the
    # point of no return.
    _LINE
    _KEYS
    _KEYS_END
    _BODY
    _STREAM
    _SWALLOW
    _CLOSED

# A bare verb that is not for queues: how it is named in the refusal, and whether a data block follows.
cdef dict UNSUPPORTED = {
    verb: (b"CLIENT_ERROR " + verb + b" is not supported\r\n", has_block)
    for verb, has_block in (
        (b"add", True), (b"replace", True), (b"append", True), (b"prepend", True), (b"cas", True),
        (b"touch", False), (b"incr", False), (b"decr", False), (b"ma", False),
    )
}

cdef dict COLD = {
    # verb: (its number, how many words come before a noreply, 0 if it has none, how many words it takes besides)
    b"delete": (DELETE, 2, 2), b"flush": (FLUSH, 2, 1), b"flush_all": (FLUSH_ALL, 1, 1),
    b"flush_expired": (FLUSH_EXPIRED, 0, 1), b"flush_all_expired": (FLUSH_ALL_EXPIRED, 0, 0), b"stats": (STATS, 0, _MAX_WORDS),
    b"version": (VERSION, 0, 0), b"verbosity": (VERBOSITY, 1, 1), b"quit": (QUIT, 0, 0),
    b"dump_stats": (DUMP_STATS, 0, _MAX_WORDS), b"dump_config": (DUMP_CONFIG, 0, _MAX_WORDS), b"status": (STATUS, 0, 1),
    b"reload": (RELOAD, 0, 0), b"shutdown": (SHUTDOWN, 0, 0), b"monitor": (MONITOR, 0, 3), b"confirm": (CONFIRM, 0, 2),
    b"mn": (MN, 0, 0), b"me": (ME, 0, 2),
}


@cython.final
cdef class Parser:
    """Cuts a byte stream into requests.

    `feed` it what arrived, then iterate: each step parses and returns one request, and the iteration
    ends where more bytes are needed. Bytes not yet parsed stay inside, so a caller may stop iterating
    at any request and go on later. At most one line and one chunk are held besides what was fed.
    """

    def __cinit__(self):
        self._buffer = b""
        self._state = _LINE

    cpdef void feed(self, bytes data):
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
        return self._state in (_BODY, _STREAM, _SWALLOW)

    def __iter__(self):
        return self

    def __next__(self):
        cdef Request request = self.next_request()
        if request is None:
            raise StopIteration
        return request

    cpdef Request next_request(self):
        """The next request, or None where more bytes are needed."""
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
        """The rest of a long get is not served: its keys are passed over, and it has no end."""
        if self._state == _KEYS:
            self._skips = True
        elif self._state == _KEYS_END:
            self._state = _LINE

    cdef Request leave(self, int verb):
        """Who sends this is no client: nothing more is read."""
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
        """A line longer than others may be: the keys of a get, which come in runs."""
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
        """Look over the keys of a whole line, which ends before `at + size`. Returns the request if there is one key
        alone, or what is wrong; else None."""
        cdef:
            Py_ssize_t i = 0, n = 0
            Word words[2]
            Word* word = &words[1]
            Request request
            bytes error = None
            bint waits = False
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
                error = E_LINE_TOO_LONG if word.size > _MAX_LINE else parse_get_key(request, word)
                waits = waits or request.waits
        if n and ends_as_http(word):
            return self.leave(HTTP)
        if error is E_LINE_TOO_LONG:
            return self.fail(error, False)
        if n < 2:
            return parse_get(words, n + 1, verb)
        if error is None and waits:
            error = E_WAIT_MANY
        return None if error is None else new_error(REFUSED, error, False)

    cdef Request next_keys(self):
        """The next run of keys of a long get, once all of it is there."""
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
                    request = new_error(REFUSED, E_WAIT_MANY, False)
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
            # without a length there is no telling data from commands
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

    cdef bint fill(self, Py_ssize_t gap, Py_ssize_t size):
        """Reads the next `size` bytes of the data block into `_body`, behind `gap` bytes that are left
        free: as they come, so that a slow sender costs no more copying than a fast one."""
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
    """`VALUE <key> <flags> <size>[ <cas>]` and its line end; no cas token if `cas` is 0."""
    cdef char line[_MAX_LINE + 80]
    if PyBytes_GET_SIZE(key) > _MAX_LINE:
        raise ValueError("key longer than a line")
    return PyBytes_FromStringAndSize(line, write_value_line(line, key, flags, size, cas))


cpdef bytes value(bytes key, Item item, bint with_cas, bint last):
    """A whole `VALUE` reply for an item whose bytes are in memory, with `END` behind it if it is the last of
    its command."""
    cdef:
        char line[_MAX_LINE + 80]
        Py_ssize_t header, size = <Py_ssize_t>item.size, tail = 7 if last else 2
        bytes reply
        char* out
    if PyBytes_GET_SIZE(key) > _MAX_LINE:
        raise ValueError("key longer than a line")
    header = write_value_line(line, key, item.flags, item.size, item.id if with_cas else 0)
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
    """Write to a socket that does not block; returns how many bytes it took. BlockingIOError if none,
    OSError if the other end is gone.

    Unlike os.write it keeps the GIL: to let go of it and take it back costs more than the call gives away.
    """
    cdef ssize_t sent = c_send(descriptor, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), MSG_NOSIGNAL)
    if sent < 0:
        PyErr_SetFromErrno(OSError)
    return sent


# Keys and records. All numbers are big-endian, so that LevelDB's bytewise order is their order.
# docs/design.md draws each record.

cdef enum:
    _RECORD_VERSION = 1
    # An item's times are stamps (timeline.py); the first version had dates, which are stamps, too.
    _ITEM_VERSION = 2
    _INLINE = 0
    _CHUNKED = 1
    _CRC = 4
    _ITEM_HEADER = 24
    _BLOB_HEADER = 20
    _RECORD_HEAD = 28       # an item's checksum and header, before its bytes
    _STATE = 74


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


# CRC-32C, which processors have an instruction for. Where there is none, eight bytes at a time by tables
# ("slicing by 8"). In C, for the way to a checksum through Python costs several times what that of a small item does.

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    static uint32_t crc_table[8][256];

    static uint32_t crc_by_table(uint32_t crc, const unsigned char* at, size_t size) {
        for (; size >= 8; at += 8, size -= 8) {
            uint32_t low = crc ^ ((uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24);
            crc = crc_table[7][low & 255] ^ crc_table[6][low >> 8 & 255] ^ crc_table[5][low >> 16 & 255]
                ^ crc_table[4][low >> 24] ^ crc_table[3][at[4]] ^ crc_table[2][at[5]] ^ crc_table[1][at[6]]
                ^ crc_table[0][at[7]];
        }
        for (; size; at++, size--)
            crc = crc_table[0][(crc ^ *at) & 255] ^ crc >> 8;
        return crc;
    }

    static uint32_t (*crc_of)(uint32_t, const unsigned char*, size_t) = crc_by_table;

    #if defined(__x86_64__) && defined(__GNUC__)
    __attribute__((target("sse4.2")))
    static uint32_t crc_by_instruction(uint32_t crc, const unsigned char* at, size_t size) {
        uint64_t wide = crc, word;
        for (; size >= 8; at += 8, size -= 8) {
            memcpy(&word, at, 8);
            wide = __builtin_ia32_crc32di(wide, word);
        }
        for (; size; at++, size--)
            wide = __builtin_ia32_crc32qi((uint32_t)wide, *at);
        return (uint32_t)wide;
    }
    #endif

    static void crc_begin(int by_table) {
        for (uint32_t n = 0; n < 256; n++) {
            uint32_t c = n;
            for (int k = 0; k < 8; k++)
                c = c & 1 ? 0x82f63b78 ^ c >> 1 : c >> 1;
            crc_table[0][n] = c;
        }
        for (int n = 0; n < 256; n++)
            for (int k = 1; k < 8; k++)
                crc_table[k][n] = crc_table[0][crc_table[k - 1][n] & 255] ^ crc_table[k - 1][n] >> 8;
        crc_of = crc_by_table;
    #if defined(__x86_64__) && defined(__GNUC__)
        if (!by_table && __builtin_cpu_supports("sse4.2"))
            crc_of = crc_by_instruction;
    #endif
    }
    """
    void crc_begin(bint by_table)
    uint32_t crc_of(uint32_t crc, const unsigned char* at, size_t size) noexcept


crc_begin(False)


cdef inline uint32_t crc32c(const char* data, Py_ssize_t size, uint32_t crc) noexcept:
    return ~crc_of(~crc, <const unsigned char*>data, size)


cdef inline uint32_t record_crc(const char* record, Py_ssize_t size, uint64_t id) noexcept:
    """An item's id takes part, so that a record under another's key is found out; and the size, for a CRC that
    has come to 0 sees no zero that is too many."""
    return crc32c(record + _CRC, size - _CRC, <uint32_t>(id ^ <uint64_t>size))


def checksum(bytes data not None, uint32_t seed=0, bint by_table=False):
    """The CRC-32C of `data`, as records have it; `by_table` without the processor's instruction."""
    crc_begin(by_table)
    cdef uint32_t crc = crc32c(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), seed)
    crc_begin(False)
    return crc


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
    """An item of a queue. Its bytes are in `record`, behind the record's head; or, if that is None, in the
    file of `blob`. Of one that is reserved, or has come back, they may be in the journal alone."""

    def __init__(self, uint64_t id, uint32_t flags, uint64_t expires_ms, uint64_t enqueued_ms, bytes data,
                 uint64_t blob=0, uint64_t size=0, uint32_t chunk_bytes=0, uint16_t attempts=0):
        self.id = id
        self.flags = flags
        self.expires_ms = expires_ms
        self.enqueued_ms = enqueued_ms
        self.blob = blob
        self.size = size
        if data is not None:
            self.size = PyBytes_GET_SIZE(data)
            self.record = PyBytes_FromStringAndSize(NULL, _RECORD_HEAD + PyBytes_GET_SIZE(data))
            memcpy(PyBytes_AS_STRING(self.record) + _RECORD_HEAD, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        self.memory_bytes = _ITEM_BYTES + (0 if data is None else self.size)
        self.chunk_bytes = chunk_bytes
        self.attempts = attempts

    cpdef Item another(self):
        """Another one of the same bytes, which it shares."""
        cdef Item item = Item.__new__(Item)
        item.id = self.id
        item.flags = self.flags
        item.expires_ms = self.expires_ms
        item.enqueued_ms = self.enqueued_ms
        item.attempts = self.attempts
        item.size = self.size
        item.memory_bytes = self.memory_bytes
        item.blob = self.blob
        item.chunk_bytes = self.chunk_bytes
        item.record = self.record
        return item

    cpdef forget_data(self):
        """Let go of the bytes: they are to be had elsewhere."""
        self.record = None
        self.memory_bytes = _ITEM_BYTES

    @property
    def data(self):
        """The item's bytes, or None if they are not in memory."""
        return None if self.record is None else self.record[_RECORD_HEAD:]

    @property
    def chunks(self):
        """How many chunks hold its bytes."""
        if self.blob == 0 or self.chunk_bytes == 0:
            return 0
        return self.size // self.chunk_bytes + (self.size % self.chunk_bytes != 0)


cpdef bytes copy_record(bytes record):
    """The same bytes in memory of their own, for another item: `encode_item` writes to them."""
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(record), PyBytes_GET_SIZE(record))


cpdef Item new_item(bytes record, uint32_t flags, uint64_t expires_ms, uint64_t enqueued_ms):
    """An item not yet in a queue, of what the parser gave as the `record` of a SET."""
    cdef Item item = Item.__new__(Item)
    item.record = record
    item.size = PyBytes_GET_SIZE(record) - _RECORD_HEAD
    item.memory_bytes = _ITEM_BYTES + item.size
    item.flags = flags
    item.expires_ms = expires_ms
    item.enqueued_ms = enqueued_ms
    return item


cpdef bytes encode_item(Item item):
    """The record of an item: checksum, header, then its bytes or where its chunks are.

    The head of `item.record` is filled in where it lies: nobody reads it before this.
    """
    cdef bytes record = item.record
    cdef char* out
    if record is None:
        record = PyBytes_FromStringAndSize(NULL, _RECORD_HEAD + _BLOB_HEADER)
        out = PyBytes_AS_STRING(record) + _RECORD_HEAD
        put_u64(out, item.blob)
        put_u64(out + 8, item.size)
        put_u32(out + 16, item.chunk_bytes)
    out = PyBytes_AS_STRING(record)
    out[_CRC] = _ITEM_VERSION
    out[_CRC + 1] = _CHUNKED if item.record is None else _INLINE
    out[_CRC + 2] = <char>(item.attempts >> 8)
    out[_CRC + 3] = <char>item.attempts
    put_u32(out + _CRC + 4, item.flags)
    put_u64(out + _CRC + 8, item.expires_ms)
    put_u64(out + _CRC + 16, item.enqueued_ms)
    put_u32(out, record_crc(out, PyBytes_GET_SIZE(record), item.id))
    return record


cdef inline bint is_too_large(uint64_t number) noexcept:
    """Whether no record of darner's has this number: what is less can be added, and still fits into 64 bits."""
    return number >> 62 != 0


cdef wrong_version(what, uint8_t version, int known):
    if version > known:
        return NewerFormatError(f"{what} has record version {version}, this darner knows {known}")
    return ValueError(f"{what} has record version {version}, which there is not")


def decode_item(bytes key not None, bytes record not None):
    """The item in a record. NewerFormatError if a later darner wrote it; else ValueError if it is damaged, or has
    numbers that no item has."""
    if PyBytes_GET_SIZE(key) != 9:
        raise ValueError("key of an item cut short")
    return item_of(get_u64(PyBytes_AS_STRING(key) + 1), record)


cdef Item item_of(uint64_t id, bytes record):
    cdef:
        const char* at = PyBytes_AS_STRING(record)
        Py_ssize_t size = PyBytes_GET_SIZE(record) - _RECORD_HEAD
        Item item
    if PyBytes_GET_SIZE(record) <= _CRC:
        raise ValueError("item record cut short")
    if get_u32(at) != record_crc(at, PyBytes_GET_SIZE(record), id):
        raise ValueError(f"item {id} fails its checksum")
    at += _CRC
    if at[0] != _ITEM_VERSION and at[0] != _RECORD_VERSION:
        raise wrong_version(f"item {id}", <uint8_t>at[0], _ITEM_VERSION)
    if size < 0:
        raise ValueError("item record cut short")
    if at[1] != _CHUNKED and at[1] != _INLINE:
        raise NewerFormatError(f"item {id} is of kind {<int><uint8_t>at[1]}, which this darner does not know")
    item = Item.__new__(Item)
    item.id = id
    item.attempts = <uint16_t>(<uint8_t>at[2] << 8 | <uint8_t>at[3])
    item.flags = get_u32(at + 4)
    item.expires_ms = get_u64(at + 8)
    item.enqueued_ms = get_u64(at + 16)
    item.memory_bytes = _ITEM_BYTES
    if id == 0 or is_too_large(id | item.expires_ms | item.enqueued_ms):
        raise ValueError(f"item {id} has numbers that no item has")
    if at[1] == _CHUNKED:
        if size != _BLOB_HEADER:
            raise ValueError(f"item {id} is chunked, and does not say where")
        at += _ITEM_HEADER
        item.blob = get_u64(at)
        item.size = get_u64(at + 8)
        item.chunk_bytes = get_u32(at + 16)
        if (item.blob == 0 or is_too_large(item.blob) or item.size > _MAX_SIZE
                or not 0 < item.chunk_bytes <= _MAX_CHUNK):
            raise ValueError(f"item {id} is chunked, and has numbers that no such item has")
    else:
        item.record = record
        item.size = size
        item.memory_bytes += size
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
    memcpy(out + _CRC, PyBytes_AS_STRING(data), size)
    put_u32(out, record_crc(out, _CRC + size, 0))
    return record


def decode_chunk(bytes record not None):
    """The bytes of a chunk. ValueError if they fail the checksum."""
    check_chunk(record)
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(record) + _CRC, PyBytes_GET_SIZE(record) - _CRC)


cpdef check_chunk(bytes record):
    """ValueError if the bytes of a chunk fail the checksum."""
    cdef const char* at = PyBytes_AS_STRING(record)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(record)
    if size < _CRC:
        raise ValueError("chunk cut short")
    if get_u32(at) != record_crc(at, size, 0):
        raise ValueError("chunk fails its checksum")


@cython.final
@cython.no_gc
cdef class State:
    """What a journal must know at start without looking at its items; written with every batch.

    `life`: a number no other journal has had, so that a directory is told from one of the same name before.
    `change`: how many changes the journal has seen. `floor`: no item below it is live but the kept ones.
    `trimmed`: nothing is left to delete below it. `next_id`, `next_blob`: the ids to give out next. `items`,
    `bytes`: what is live, reserved included. `created_ms`: when the queue was made.
    """

    def __init__(self, uint64_t created_ms, uint64_t life):
        self.floor = self.trimmed = self.next_id = self.next_blob = 1
        self.created_ms = created_ms
        self.life = life

    cpdef void add(self, Item item):
        """Count a new item in; its id is the next one."""
        self.next_id += 1
        self.items += 1
        self.bytes += item.size

    cpdef bint drop(self, uint64_t id, uint64_t size):
        """Count an item out; returns whether it was the one at the floor, which is now behind it. ValueError if
        there is none left to count out."""
        if self.items == 0 or self.bytes < size:
            raise ValueError(f"item {id} is one more than are counted")
        self.items -= 1
        self.bytes -= size
        if id != self.floor:
            return False
        self.floor += 1
        return True

    cpdef State copy(self):
        """Another one with the same in it."""
        cdef State state = State.__new__(State)
        state.deleted = self.deleted
        state.change = self.change
        state.floor = self.floor
        state.trimmed = self.trimmed
        state.next_id = self.next_id
        state.next_blob = self.next_blob
        state.items = self.items
        state.bytes = self.bytes
        state.created_ms = self.created_ms
        state.life = self.life
        return state


def encode_state(State state not None):
    """The record of a journal's state."""
    cdef char out[_STATE]
    cdef char* at = out
    at[0] = _RECORD_VERSION
    at[1] = state.deleted
    put_u64(at + 2, state.change)
    put_u64(at + 10, state.floor)
    put_u64(at + 18, state.trimmed)
    put_u64(at + 26, state.next_id)
    put_u64(at + 34, state.next_blob)
    put_u64(at + 42, state.items)
    put_u64(at + 50, state.bytes)
    put_u64(at + 58, state.created_ms)
    put_u64(at + 66, state.life)
    return encode_chunk(PyBytes_FromStringAndSize(at, _STATE))


def decode_state(bytes record not None):
    """The state in a record. NewerFormatError if a later darner wrote it; else ValueError if it is damaged, or has
    numbers that no state has."""
    cdef bytes body
    cdef const char* at
    cdef State state = State.__new__(State)
    if PyBytes_GET_SIZE(record) <= _CRC:
        raise ValueError("state record has the wrong length")
    body = decode_chunk(record)
    at = PyBytes_AS_STRING(body)
    if at[0] != _RECORD_VERSION:
        raise wrong_version("state", <uint8_t>at[0], _RECORD_VERSION)
    if PyBytes_GET_SIZE(body) != _STATE:
        raise ValueError("state record has the wrong length")
    state.deleted = at[1]
    state.change = get_u64(at + 2)
    state.floor = get_u64(at + 10)
    state.trimmed = get_u64(at + 18)
    state.next_id = get_u64(at + 26)
    state.next_blob = get_u64(at + 34)
    state.items = get_u64(at + 42)
    state.bytes = get_u64(at + 50)
    state.created_ms = get_u64(at + 58)
    state.life = get_u64(at + 66)
    if not 0 < state.trimmed <= state.floor <= state.next_id or state.next_blob == 0 or is_too_large(
        state.change | state.next_id | state.next_blob | state.items | state.bytes | state.created_ms
    ):
        raise ValueError("state has numbers that no state has")
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
    """The ids in a record. ValueError if the record is damaged, or has numbers that are no ids."""
    cdef bytes body = decode_chunk(record)
    cdef const char* at = PyBytes_AS_STRING(body)
    cdef Py_ssize_t i, size = PyBytes_GET_SIZE(body)
    if size % 8 != 0:
        raise ValueError("list of ids cut short")
    for i in range(0, size, 8):
        if is_too_large(get_u64(at + i)):
            raise ValueError("list of ids has numbers that are none")
    return [get_u64(at + i) for i in range(0, size, 8)]


# The write-ahead log: segments of frames, one frame a change. wal.py says what becomes of the segments.

cpdef enum Change:
    """What a frame says. Its payload, numbers of 64 bits:"""
    ENTER = 1       # life, then the name: the frames of this `journal` that follow concern that queue
    PUT = 2         # id, then the item's record
    DROP = 3        # id, size, blob
    REWRITE = 4     # as PUT, of an item that is there: of that the attempts count. An earlier version wrote them
    DISCARD = 5     # id and size of each item that stays
    BLOB = 6        # blob
    RETIRE = 7
    REVIVE = 8      # when, in ms
    DELAY = 9       # when it is due, in ms, id, then the item's record: it is out of sight
    JOIN = 10       # the first two of a DELAY, and when, in ms: that item is put, as the last
    END = 11        # nothing follows in this segment
    CURSOR = 12     # the size of its label, in a byte, the label, then its place; no place if it is dropped
    COMMIT = 13     # the group of frames before it is whole
    LOST = 14       # what is damaged: no item of the ids from the first up to the second is there any more; then how
                    # many items there are, and their bytes
    LOST_DELAYED = 15   # the first two of a DELAY: that item is damaged, and no more; then as LOST, of the delayed
    ATTEMPTS = 16   # id, and how often this item has come back


cdef enum:
    # Magic, segment's number, marker, the number of the segment before it and how many bytes of that count, the
    # segment's size (64 bits each), checksum. A copy of it lies at the end of the segment.
    _SEGMENT_HEAD = 64
    _SEGMENT_HEAD_CHECKED = 48
    # Marker (64 bits), checksum, payload's size (32 bits each), kind (8), journal (32), change (64).
    _FRAME_HEAD = 29
    _MARKER = 8
    # A record's own checksum sees to its bytes: that of the frame takes in the id and that checksum.
    _CHECKED_OF_RECORD = 12
    # In the kind of a frame: a COMMIT must follow, or it does not count.
    _IN_GROUP = 0x80
    # Version 1, which darner 1.0.0 before its release wrote: magic and number, then frames without a marker.
    _SEGMENT_HEAD_1 = 16
    _FRAME_HEAD_1 = 21

cdef bytes SEGMENT_MAGIC = b"darner 2"
cdef bytes SEGMENT_MAGIC_1 = b"darner 1"


cdef extern from *:
    """
    #include <signal.h>
    #include <stdint.h>
    #include <sys/mman.h>
    #include <unistd.h>

    static volatile sig_atomic_t darner_bus_errors = 0;
    static struct sigaction darner_bus_before;
    static long darner_page_bytes;

    static void darner_on_bus_error(int number, siginfo_t* info, void* context)
    {
        /* The page has no room on the disk, or the file was cut short, or cannot be read. A page of memory
           takes its place, so that whoever copies goes on; they look at the count when they are done. */
        if (info->si_code == BUS_ADRERR) {
            void* page = (void*)((uintptr_t)info->si_addr & ~((uintptr_t)darner_page_bytes - 1));
            if (mmap(page, darner_page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
                     -1, 0) != MAP_FAILED) {
                darner_bus_errors++;
                return;
            }
        }
        sigaction(SIGBUS, &darner_bus_before, NULL);  /* comes again, and does what it did before */
    }

    static void darner_guard_memory(void)
    {
        struct sigaction action = {0};
        darner_page_bytes = sysconf(_SC_PAGESIZE);
        action.sa_sigaction = darner_on_bus_error;
        action.sa_flags = SA_SIGINFO;
        sigemptyset(&action.sa_mask);
        sigaction(SIGBUS, &action, &darner_bus_before);
    }
    """
    int darner_bus_errors
    void darner_guard_memory()
    int c_madvise "madvise"(void* memory, size_t size, int advice) nogil


def guard_memory():
    """Survive a write to mapped memory that the disk has no room for, or whose file was cut short: these arrive as a
    signal (SIGBUS), which ends a process. To be called once, before anything is mapped."""
    darner_guard_memory()


def bus_errors():
    """Return how many pages of mapped files could not be written or read since `guard_memory`: what was read from
    them since then is zeros, and what was written is lost."""
    return darner_bus_errors


cdef inline uint32_t frame_crc(const char* frame, Py_ssize_t size, uint64_t number) noexcept:
    """The checksum of a frame, behind its marker. The segment's number takes part."""
    cdef int kind = frame[8] & (_IN_GROUP - 1)
    if kind == PUT or kind == REWRITE:
        size = _CHECKED_OF_RECORD
    return crc32c(frame + 4, _FRAME_HEAD_1 - 4 + size, <uint32_t>number)


# Of Linux 5.14, and missing in older headers.
cdef enum:
    _MADV_POPULATE_WRITE = 23


def populate(memory not None):
    """Have all pages of mapped memory, a writable buffer, at hand and writable, which costs a third of meeting
    them one by one; nothing where the system cannot do so. Unlike mmap.madvise it lets other threads run.

    Raises OSError if there is one that cannot be written: the disk has no room for it, or the file was cut short."""
    cdef Py_buffer view
    cdef int code = 0
    PyObject_GetBuffer(memory, &view, PyBUF_WRITABLE)
    with nogil:
        if c_madvise(view.buf, view.len, _MADV_POPULATE_WRITE) != 0:
            code = errno
    PyBuffer_Release(&view)
    if code == EFAULT:
        raise OSError(ENOSPC, os.strerror(ENOSPC))


cdef extern from *:
    """
    #include <time.h>
    #ifndef CLOCK_BOOTTIME
    #define CLOCK_BOOTTIME CLOCK_MONOTONIC
    #endif
    """
    int CLOCK_BOOTTIME


cpdef int64_t since_boot_ms() except -1:
    """How long the machine has been up, in ms, the time it was asleep too. By C: through `time` it takes twice as
    long, and each request asks."""
    cdef timespec now
    if clock_gettime(CLOCK_BOOTTIME, &now) != 0:
        PyErr_SetFromErrno(OSError)
    return <int64_t>now.tv_sec * 1000 + now.tv_nsec // 1_000_000


cdef extern from *:
    """
    #include <stdlib.h>
    #ifdef __GLIBC__
    #include <malloc.h>
    #else
    enum { M_ARENA_MAX };
    static int mallopt(int option, int value) { return 0; }
    static int malloc_trim(size_t pad) { return 0; }
    #endif
    """
    int M_ARENA_MAX
    int mallopt(int option, int value)
    int malloc_trim(size_t pad) nogil


def share_heap():
    """Have all threads allocate from one heap, where one uses what another has freed; glibc has each keep its
    own. To be called before any is begun."""
    mallopt(M_ARENA_MAX, 1)


def trim_memory():
    """Give back to the system what was freed: glibc keeps it where something behind it is still in use."""
    with nogil:
        malloc_trim(0)


def segment_head(uint64_t number, uint64_t marker, uint64_t previous, uint64_t previous_bytes, uint64_t size):
    """Return the head of a segment of `size` bytes; number 0 is that of one that was not begun. Of the segment
    before it, `previous`, so many bytes count."""
    cdef char out[_SEGMENT_HEAD]
    memset(out, 0, _SEGMENT_HEAD)
    memcpy(out, PyBytes_AS_STRING(SEGMENT_MAGIC), 8)
    put_u64(out + 8, number)
    put_u64(out + 16, marker)
    put_u64(out + 24, previous)
    put_u64(out + 32, previous_bytes)
    put_u64(out + 40, size)
    put_u32(out + _SEGMENT_HEAD_CHECKED, crc32c(out, _SEGMENT_HEAD_CHECKED, 0))
    return PyBytes_FromStringAndSize(out, _SEGMENT_HEAD)


@cython.final
cdef class Segment:
    """The segment of the log that is being written, in mapped memory.

    `begin` has it write to another piece of memory. The methods that write a frame return whether there
    was room for it; `journal` numbers the journals of this segment, `change` the changes of the journal.
    `refusal`: why no item is taken in, if none is; what is taken out is logged as long as there is room.

    Each frame begins with the segment's marker, a random number: so no bytes of an item, which a client chooses, and
    none that an earlier use of the file left behind, are a frame of this one.
    """

    def __dealloc__(self):
        if self._memory != NULL:
            PyBuffer_Release(&self._view)

    def begin(self, memory, uint64_t number, uint64_t marker, uint64_t previous=0, uint64_t previous_bytes=0):
        """Write to `memory`, a writable buffer, from its start, as the segment of this number; see `segment_head`."""
        self.end()
        PyObject_GetBuffer(memory, &self._view, PyBUF_WRITABLE)
        self._memory = <char*>self._view.buf
        self.number = number
        self.marker = marker
        self._bus_errors = darner_bus_errors
        self.is_lost = False
        cdef bytes head = segment_head(number, marker, previous, previous_bytes, self._view.len)
        # the copy first: as long as the one at the start is not there, nothing was begun
        memcpy(self._memory + self._view.len - _SEGMENT_HEAD, PyBytes_AS_STRING(head), _SEGMENT_HEAD)
        memcpy(self._memory, PyBytes_AS_STRING(head), _SEGMENT_HEAD)
        # so that there is always room for the COMMIT and the END
        self._size = self._view.len - _SEGMENT_HEAD - 2 * _FRAME_HEAD
        self.used_bytes = _SEGMENT_HEAD

    def end(self):
        """Write nothing more to this memory, and let it go."""
        if self._memory == NULL:
            return
        if not self.is_lost:
            self._size = self._view.len - _SEGMENT_HEAD
            kind_flag = self._kind_flag
            self._kind_flag = 0  # it is of no group, though one may go on in the next segment
            self.write(END, 0, 0, b"")
            self._kind_flag = kind_flag
        PyBuffer_Release(&self._view)
        self._memory = NULL
        self._size = self.used_bytes = 0

    @property
    def room_bytes(self):
        """How many bytes of frames fit in."""
        return self._size - self.used_bytes

    def begin_group(self):
        """Have the frames from here to `end_group` found all or none, also in segments that are begun meanwhile."""
        self._kind_flag = _IN_GROUP
        self.in_group = True

    def end_group(self):
        """All frames of the group are written; returns whether that is noted, for which there is always room."""
        self._kind_flag = 0
        self.in_group = False
        if self.is_lost:
            return False
        self._size += _FRAME_HEAD
        written = self.write(COMMIT, 0, 0, b"")
        if written:
            self._size -= _FRAME_HEAD
        return written

    cdef char* frame(self, Py_ssize_t size) noexcept:
        """Where the payload of a frame goes, or NULL."""
        if self.used_bytes + _FRAME_HEAD + size > self._size:
            return NULL
        return self._memory + self.used_bytes + _FRAME_HEAD

    cdef bint close_frame(self, char* payload, Py_ssize_t size, int kind, uint32_t journal, uint64_t change) noexcept:
        cdef char* at = payload - _FRAME_HEAD + _MARKER
        put_u32(at + 4, <uint32_t>size)
        at[8] = <char>(kind | self._kind_flag)
        put_u32(at + 9, journal)
        put_u64(at + 13, change)
        put_u32(at, frame_crc(at, size, self.number))
        put_u64(at - _MARKER, self.marker)
        if darner_bus_errors != self._bus_errors:
            # perhaps not under this frame; but to go on elsewhere is always right
            self.is_lost = True
            self._size = 0
            return False
        self.used_bytes += _FRAME_HEAD + size
        return True

    cdef bint write(self, int kind, uint32_t journal, uint64_t change, bytes payload):
        cdef Py_ssize_t size = PyBytes_GET_SIZE(payload)
        cdef char* at = self.frame(size)
        if at == NULL:
            return False
        memcpy(at, PyBytes_AS_STRING(payload), size)
        return self.close_frame(at, size, kind, journal, change)

    cpdef bint append(self, int kind, uint32_t journal, uint64_t change, bytes payload):
        """Write a frame of any kind."""
        return self.write(kind, journal, change, payload)

    cpdef bint put(self, int kind, uint32_t journal, uint64_t change, Item item):
        """Write a PUT."""
        cdef bytes record = encode_item(item)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(record)
        cdef char* at = self.frame(8 + size)
        if at == NULL:
            return False
        put_u64(at, item.id)
        memcpy(at + 8, PyBytes_AS_STRING(record), size)
        return self.close_frame(at, 8 + size, kind, journal, change)

    cpdef bint drop(self, uint32_t journal, uint64_t change, uint64_t id, uint64_t size, uint64_t blob):
        """Write a DROP."""
        cdef char* at = self.frame(24)
        if at == NULL:
            return False
        put_u64(at, id)
        put_u64(at + 8, size)
        put_u64(at + 16, blob)
        return self.close_frame(at, 24, DROP, journal, change)


class SegmentFormatError(ValueError):
    """A segment has a format that this darner does not know."""


cdef class Scanned:
    """What a segment holds: see `read_segment`."""

    cdef:
        readonly uint64_t number
        readonly uint64_t marker
        readonly uint64_t previous
        readonly uint64_t previous_bytes
        readonly list frames
        readonly Py_ssize_t used_bytes
        readonly Py_ssize_t whole_bytes
        readonly Py_ssize_t open_frames
        readonly bint ended
        readonly bint commits
        readonly list behind
        readonly str damage


cdef extern from "<string.h>":
    void* memmem(const void* haystack, size_t size, const void* needle, size_t needle_size)


cdef const char* head_of(bytes memory):
    """The head of a segment, or its copy, or NULL if neither is right."""
    cdef:
        const char* start = PyBytes_AS_STRING(memory)
        Py_ssize_t size = PyBytes_GET_SIZE(memory)
        const char* at
        int copy
    if size < 2 * _SEGMENT_HEAD:
        return NULL
    for copy in range(2):
        at = start + (size - _SEGMENT_HEAD if copy else 0)
        if memcmp(at, PyBytes_AS_STRING(SEGMENT_MAGIC), 8) == 0 and get_u32(
            at + _SEGMENT_HEAD_CHECKED
        ) == crc32c(at, _SEGMENT_HEAD_CHECKED, 0):
            return at
    return NULL


cdef Py_ssize_t frame_at(const char* at, Py_ssize_t left, Scanned scanned, Py_ssize_t marker):
    """The size of the payload of the frame there, or -1 if it is not whole; with a marker of so many bytes."""
    cdef Py_ssize_t size
    cdef int kind
    if left < marker + _FRAME_HEAD_1 or (marker and get_u64(at) != scanned.marker):
        return -1
    at += marker
    size = get_u32(at + 4)
    kind = at[8] & (_IN_GROUP - 1)
    if size > left - marker - _FRAME_HEAD_1:
        return -1
    if (kind == PUT or kind == REWRITE) and size < 8 + _RECORD_HEAD:
        return -1
    if get_u32(at) != frame_crc(at, size, scanned.number):
        return -1
    # whether it is an item that this darner knows is for its queue to say
    if kind == PUT or kind == REWRITE:
        at += _FRAME_HEAD_1
        if get_u32(at + 8) != record_crc(at + 8, size - 8, get_u64(at)):
            return -1
    return size


cdef tuple frame_of(const char* at, Py_ssize_t size):
    return (
        at[8] & (_IN_GROUP - 1), get_u32(at + 9), get_u64(at + 13), PyBytes_FromStringAndSize(at + _FRAME_HEAD_1, size)
    )


def read_segment(bytes memory not None):
    """Return what a segment holds, as far as it is whole:

    `number`, 0 if it was never begun or is none; `previous` and `previous_bytes`: see `segment_head`; `marker`.
    `frames`: as (kind, journal, change, payload), up to the first that is not whole; `used_bytes`, where that is;
    `ended`: whether that is the END. Of the frames, the last `open_frames` are of a group without its COMMIT, which begins at
    `whole_bytes`; `commits`: whether a group that the segment before it has left so is whole. `behind`: the whole frames behind the one that is not. `damage`: what is wrong with the head and the size, or "".

    Raises SegmentFormatError if it is of a later version.
    """
    cdef:
        Scanned scanned = Scanned.__new__(Scanned)
        const char* start = PyBytes_AS_STRING(memory)
        Py_ssize_t total = PyBytes_GET_SIZE(memory), at, stop = total, size, marker = _MARKER
        const char* head
        const char* found
        char pattern[8]
        int kind
    scanned.frames, scanned.behind, scanned.damage = [], [], ""
    if total >= 8 and memcmp(start, b"darner ", 7) == 0 and start[7] > SEGMENT_MAGIC[7] and start[7] <= c"9":
        raise SegmentFormatError(f"it is of version {chr(start[7])}")
    if (total >= _SEGMENT_HEAD_1 and memcmp(start, PyBytes_AS_STRING(SEGMENT_MAGIC_1), 8) == 0
            and not is_too_large(get_u64(start + 8))):
        scanned.number = get_u64(start + 8)
        at, marker = _SEGMENT_HEAD_1, 0
    else:
        head = head_of(memory)
        if head == NULL or is_too_large(get_u64(head + 8)):
            scanned.damage = "is empty" if memory.count(0) == total else "has no head"
            return scanned
        scanned.number = get_u64(head + 8)
        scanned.marker = get_u64(head + 16)
        scanned.previous = get_u64(head + 24)
        scanned.previous_bytes = get_u64(head + 32)
        at = _SEGMENT_HEAD
        if <Py_ssize_t>get_u64(head + 40) != total:
            scanned.damage = "is cut short"
        else:
            stop -= _SEGMENT_HEAD
    scanned.used_bytes = scanned.whole_bytes = at
    while (size := frame_at(start + at, stop - at, scanned, marker)) >= 0:
        kind = start[at + marker + 8]
        if kind == END:
            scanned.ended = True
            return scanned
        scanned.commits |= not kind & _IN_GROUP
        if kind == COMMIT:
            scanned.open_frames = 0
        else:
            scanned.frames.append(frame_of(start + at + marker, size))
            scanned.open_frames = scanned.open_frames + 1 if kind & _IN_GROUP else 0
        at += marker + _FRAME_HEAD_1 + size
        scanned.used_bytes = at
        if not scanned.open_frames:
            scanned.whole_bytes = at
    # A process that is killed leaves nothing whole behind the break, nor does a disk that wrote all in order.
    put_u64(pattern, scanned.marker)
    while marker and stop - at > _FRAME_HEAD:
        found = <const char*>memmem(start + at, stop - at, pattern, _MARKER)
        if found == NULL:
            break
        at = found - start
        size = frame_at(found, stop - at, scanned, marker)
        if size >= 0:
            scanned.behind.append(frame_of(found + marker, size))
            at += size
        at += 1
    return scanned
