"""Requests: lines, their ends, words, names, and the replies to bad ones."""

import contextlib
import re
import signal
from urllib.parse import unquote_to_bytes

import pytest
from running import until

MAX_LINE_BYTES = 2048
BLOCK_VERBS = [b"add", b"replace", b"append", b"prepend", b"cas"]
BARE_VERBS = [b"touch", b"incr", b"decr"]


def block(verb: bytes, queue: bytes, data: bytes, tail: bytes = b"") -> bytes:
    """Return a storage command of any verb, with its block."""
    unique = b" 7" if verb == b"cas" else b""
    return b"%s %s 0 0 %d%s%s\r\n%s\r\n" % (verb, queue, len(data), unique, tail, data)


class TestLine:
    def test_crlf_ends_it(self, client):
        assert client.ask(b"version\r\n").startswith(b"VERSION ")

    def test_bare_lf_ends_it(self, client, queue):
        client.send(b"set %s 0 0 1\nx\r\nget %s\nversion\n" % (queue, queue))
        assert client.line() == b"STORED\r\n"
        assert client.line() == b"VALUE %s 0 1\r\n" % queue
        assert client.exactly(8) == b"x\r\nEND\r\n"
        assert client.line().startswith(b"VERSION ")

    def test_may_come_byte_by_byte(self, client, queue):
        for byte in b"set %s 5 0 4\r\na\r\nb\r\nget %s\r\n" % (queue, queue):
            client.send(bytes([byte]))
        assert client.line() == b"STORED\r\n"
        assert client.line() == b"VALUE %s 5 4\r\n" % queue
        assert client.exactly(11) == b"a\r\nb\r\nEND\r\n"

    def test_words_are_separated_by_runs_of_spaces(self, client, queue):
        assert client.ask(b"  set   %s  3 0    1   \r\nx\r\n" % queue) == b"STORED\r\n"
        assert client.values(b"get    %s   " % queue) == [(queue, 3, None, b"x")]

    @pytest.mark.parametrize("verb", [b"get", b"GET", b"Get"])
    def test_command_words_are_matched_in_any_case(self, client, queue, verb):
        client.ask(b"SeT %s 0 0 1\r\nx\r\n" % queue)
        assert client.values(verb + b" " + queue) == [(queue, 0, None, b"x")]
        assert client.ask(b"VERSION\r\n").startswith(b"VERSION ")

    def test_queue_names_are_matched_in_their_case(self, client, queue):
        client.set(queue, b"lower")
        assert client.get(queue.upper()) is None
        assert client.get(queue) == b"lower"

    def test_of_2048_bytes_is_taken(self, client):
        line = b"get".ljust(MAX_LINE_BYTES - 1) + b"q"
        assert client.values(line) == []
        assert client.values(line) == []

    @pytest.mark.parametrize("end", [b"\r\n", b"\n"])
    def test_of_2049_bytes_is_an_error_that_closes(self, client, end):
        client.send(b"version".ljust(MAX_LINE_BYTES + 1) + end + b"version\r\n")
        assert client.line() == b"CLIENT_ERROR line too long\r\n"
        assert client.closed()

    def test_too_long_is_answered_before_it_ends(self, client):
        assert client.ask(b"x" * (MAX_LINE_BYTES + 2)) == b"CLIENT_ERROR line too long\r\n"
        assert client.closed()

    @pytest.mark.parametrize(
        "line", [b"frobnicate", b"", b"   ", b"get\0", b"getq", b"\xff\xfe", b"\x00", b"STORED", b"v" * 300]
    )
    def test_with_an_unknown_command_is_an_error_that_keeps_the_connection(self, client, line):
        assert client.ask(line + b"\r\n") == b"ERROR\r\n"
        assert client.ask(b"version\r\n").startswith(b"VERSION ")

    @pytest.mark.parametrize(
        "line",
        [
            b"get", b"gets", b"delete", b"delete a b c", b"delete q 1", b"delete a/b", b"flush", b"flush a b",
            b"flush a/b", b"flush_all x", b"flush_all 1 2", b"flush_all -1", b"verbosity", b"verbosity x",
            b"verbosity 1 2", b"get a\tb", b"get /open", b"delete a\x7f", b"get " + b"n" * 251,
        ],
    )  # fmt: skip
    def test_with_bad_arguments_is_a_client_error_that_keeps_the_connection(self, client, line):
        assert client.ask(line + b"\r\n").startswith(b"CLIENT_ERROR ")
        assert client.ask(b"version\r\n").startswith(b"VERSION ")


class TestPipeline:
    def test_is_answered_in_order(self, client, queue):
        sets = b"".join(b"set %s %d 0 4\r\n%04d\r\n" % (queue, n, n) for n in range(2000))
        client.send(sets + b"get %s\r\n" % queue * 2000 + b"version\r\nnonsense\r\n")
        assert client.exactly(8 * 2000) == b"STORED\r\n" * 2000
        for n in range(2000):
            assert client.line() == b"VALUE %s %d 4\r\n" % (queue, n)
            assert client.exactly(11) == b"%04d\r\nEND\r\n" % n
        assert client.line().startswith(b"VERSION ")
        assert client.line() == b"ERROR\r\n"

    def test_of_large_and_small_items_is_answered_in_order(self, client, queue):
        datas = [
            bytes([65 + n]) * size for n, size in enumerate([1, 200_000, 10, 65_536, 65_537, 0, 300_000])
        ]
        client.send(b"".join(block(b"set", queue, data) for data in datas))
        client.send(b"get %s\r\n" % queue * len(datas) + b"version\r\n")
        assert client.exactly(8 * len(datas)) == b"STORED\r\n" * len(datas)
        for data in datas:
            assert client.line() == b"VALUE %s 0 %d\r\n" % (queue, len(data))
            assert client.exactly(len(data) + 7) == data + b"\r\nEND\r\n"
        assert client.line().startswith(b"VERSION ")

    def test_behind_a_get_that_waits_waits_too(self, standing, client, other, queue):
        client.send(b"get %s/t=10000\r\nversion\r\nset %s 0 0 1\r\nb\r\n" % (queue, queue))
        until(lambda: standing.stat(f"queue_{queue.decode()}_waiters") == 1)
        assert client.silent()
        assert other.get(queue + b"/peek") is None
        assert other.set(queue, b"a") == b"STORED\r\n"
        assert client.line() == b"VALUE %s/t=10000 0 1\r\n" % queue
        assert client.exactly(8) == b"a\r\nEND\r\n"
        assert client.line().startswith(b"VERSION ")
        assert client.line() == b"STORED\r\n"
        assert other.get(queue) == b"b"

    def test_of_200_kb_behind_a_get_that_waits_is_all_served(self, standing, client, other, queue):
        client.send(b"get %s/t=10000\r\n" % queue + b"nonsense\r\n" * 20_000)
        until(lambda: standing.stat(f"queue_{queue.decode()}_waiters") == 1)
        other.set(queue, b"a")
        assert client.line() == b"VALUE %s/t=10000 0 1\r\n" % queue
        assert client.exactly(8 + 7 * 20_000) == b"a\r\nEND\r\n" + b"ERROR\r\n" * 20_000

    def test_is_all_served_when_the_client_has_nothing_more_to_say(self, client, queue):
        client.send(block(b"set", queue, b"x") * 3000 + b"get %s\r\n" % queue * 3000)
        client.half_close()
        assert client.exactly(8 * 3000) == b"STORED\r\n" * 3000
        for _ in range(3000):
            assert client.line() == b"VALUE %s 0 1\r\n" % queue
            assert client.exactly(8) == b"x\r\nEND\r\n"
        assert client.closed()

    def test_with_large_items_is_all_served_when_the_client_has_nothing_more_to_say(self, client, queue):
        data = bytes(1_000_000)
        client.send(block(b"set", queue, data) * 3 + b"get %s\r\n" % queue * 3)
        client.half_close()
        assert client.exactly(24) == b"STORED\r\n" * 3
        for _ in range(3):
            assert client.line() == b"VALUE %s 0 1000000\r\n" % queue
            assert client.exactly(1_000_007) == data + b"\r\nEND\r\n"
        assert client.closed()


class TestUnsupported:
    @pytest.mark.parametrize("verb", BLOCK_VERBS)
    def test_storage_verb_is_refused_and_its_block_swallowed(self, client, queue, verb):
        reply = client.ask(block(verb, queue, b"version\r\nversion"))
        assert reply == b"CLIENT_ERROR %s is not supported\r\n" % verb
        assert client.ask(b"nonsense\r\n") == b"ERROR\r\n"

    @pytest.mark.parametrize("verb", BARE_VERBS)
    def test_verb_is_refused(self, client, verb):
        assert client.ask(verb + b" q 1\r\n") == b"CLIENT_ERROR %s is not supported\r\n" % verb
        assert client.ask(b"nonsense\r\n") == b"ERROR\r\n"

    def test_verb_is_refused_in_capitals(self, client):
        assert client.ask(block(b"ADD", b"q", b"x")) == b"CLIENT_ERROR add is not supported\r\n"

    @pytest.mark.parametrize("verb", BLOCK_VERBS)
    def test_storage_verb_with_a_bad_block_closes(self, client, verb):
        client.send(block(verb, b"q", b"x")[:-2] + b"yz\r\nversion\r\n")
        assert client.line() == b"CLIENT_ERROR bad data chunk\r\n"
        assert client.closed()


class TestBinaryProtocol:
    def test_closes_at_its_first_byte_and_is_logged_once(self, server):
        for _ in range(3):
            wire = server.connect()
            wire.send(b"\x80")
            assert wire.closed()
        server.stop()
        assert server.log.count("binary") == 1

    def test_is_known_by_a_whole_request_too(self, client):
        client.send(b"\x80\x0b" + bytes(22))
        assert client.closed()

    def test_byte_in_a_later_line_is_an_unknown_command(self, client):
        client.ask(b"version\r\n")
        assert client.ask(b"\x80\x0b\r\n") == b"ERROR\r\n"
        assert client.ask(b"version\r\n").startswith(b"VERSION ")

    def test_of_a_client_that_has_gone_meanwhile_is_logged_too(self, server):
        server.process.send_signal(signal.SIGSTOP)  # so that the client has gone before the server sees it
        wire = server.connect()
        wire.send(b"\x80")
        wire.reset()
        server.process.send_signal(signal.SIGCONT)
        late = server.connect()
        late.send(b"\x80")
        assert late.closed()
        assert server.stop() == 0
        assert "Traceback" not in server.log
        assert server.log.count("binary") == 1


class TestName:
    def test_of_250_bytes_is_taken(self, client):
        name = b"n" * 250
        assert client.set(name, b"x") == b"STORED\r\n"
        assert client.get(name) == b"x"

    @pytest.mark.parametrize(
        "name", [b"n" * 251, b"a\tb", b"a\x00b", b"\x01", b"a\x7f", b"/", b"/sync", b"a/b", b"a/", b"//"]
    )
    def test_that_is_not_allowed_is_refused_and_the_block_swallowed(self, client, name):
        assert client.ask(block(b"set", name, b"x\r\ny")).startswith(b"CLIENT_ERROR ")
        assert client.ask(b"nonsense\r\n") == b"ERROR\r\n"

    def test_is_any_other_bytes_and_survives_a_restart(self, server, wire):
        names = [
            b".", b"..", b".lock", b".trash", b"...", b"%", b"%2e%2e", b"a%", b"~", b"~root", b"..\\..", b"*",
            b"$HOME", b"-rf", b"+", b"noreply", b"CURRENT", b"lost+found", "Schlösser".encode(), b"\xff\xfe",
            b"\x80" * 250, b"%" * 250, b"." * 250, b"Q", b"q", b"'\"`;|&",
        ]  # fmt: skip
        for name in names:
            assert wire.set(name, b"in " + name) == b"STORED\r\n"
        server.restart()
        with contextlib.closing(server.connect()) as again:
            assert [again.get(name) for name in names] == [b"in " + name for name in names]

    @pytest.mark.leveldb("there are no files")
    def test_is_a_directory_of_its_own_encoded_inside_the_data_directory(self, server, wire):
        names = [
            b"plain", b"..\\..\\escaped", b"..", b".hidden", b"A-z_0+9.x", "ü".encode(), b"a%2Fb", b"~", b"x",
        ]  # fmt: skip
        before = sorted(server.data.parent.iterdir())
        for name in names:
            assert wire.set(name, b"x") == b"STORED\r\n"
        assert sorted(server.data.parent.iterdir()) == before
        directories = [entry.name for entry in server.data.iterdir() if entry.is_dir()]
        found = [entry for entry in directories if not entry.startswith(".")]
        assert sorted(unquote_to_bytes(entry) for entry in found) == sorted(names)
        allowed = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+-.%")
        assert not set("".join(found)) - allowed
        assert {"plain", "%2Ehidden", "A-z_0+9.x", "%C3%BC", "%7E", "a%252Fb", "%2E."} <= set(found)

    @pytest.mark.parametrize("request_", [b"get %s+child", b"set %s+child 0 0 1\r\nx", b"set %s 0 0 1\r\nx"])
    def test_first_named_makes_the_queue(self, standing, client, queue, request_):
        client.ask(request_ % queue + b"\r\n")
        name = re.split("[ \r]", (request_ % queue).decode())[1]
        assert f"queue_{name}_items" in client.stats()
        assert (standing.data / name).is_dir() is (standing.cluster is None)

    @pytest.mark.parametrize("request_", [b"get %s/peek", b"flush %s", b"delete %s"])
    def test_peeked_flushed_or_deleted_makes_no_queue(self, standing, client, queue, request_):
        client.ask(request_ % queue + b"\r\n")
        assert f"queue_{queue.decode()}_items" not in client.stats()
        assert not (standing.data / queue.decode()).exists()
