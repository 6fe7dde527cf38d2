"""`set` and its block: flags, expiry, sizes, refusals, `/sync`, and the replies that `noreply` leaves out."""

import random
import shutil
import subprocess
import time

import pytest
from running import until

from darner._records import CHUNK_BYTES

VERBS = [b"add", b"replace", b"append", b"prepend", b"cas"]


def in_step(client) -> bool:
    """Return whether the next command is parsed from its begin, and nothing was sent before its reply."""
    return client.ask(b"version\r\n").startswith(b"VERSION ")


class TestNumber:
    """Numbers of a client that are wrong when they are read with 32 or 64 bits, or as a float."""

    NUMBERS = (
        -1,
        *(2**bits + more for bits in (31, 32, 53, 63, 64) for more in (-1, 0, 1)),
        10**15,
        10**17,
        10**18 - 1,
        10**18,
        10**40,
    )
    STORED, REFUSED, END = b"STORED\r\n", b"CLIENT_ERROR ", b"END\r\n"

    @pytest.mark.parametrize("number", NUMBERS)
    @pytest.mark.parametrize(
        ("request_", "reply"),
        [
            (b"set %s 0 {} 1\r\nx\r\n", STORED),
            (b"set %s {} 0 1\r\nx\r\n", STORED),
            (b"set %s/delay={} 0 0 1\r\nx\r\n", STORED),
            (b"set %s/delay=1 0 {} 1\r\nx\r\n", STORED),
            (b"get %s/peek/t={}\r\n", b"VALUE "),
            (b"get %s/close/t={}\r\n", END),
            (b"monitor %s {} 1\r\n", b"VALUE "),
            (b"monitor %s 0 {}\r\n", END),
            (b"confirm %s {}\r\n", b"ERROR\r\n"),
            (b"delete %s {}\r\n", b"DELETED\r\n"),
        ],
    )
    def test_is_taken_or_refused_and_the_stream_in_step(self, standing, queue, request_, reply, number):
        client = standing.connect()
        assert client.set(queue, b"first") == self.STORED
        client.send(request_.replace(b"{}", b"%d" % number) % queue + b"quit\r\n")
        line = client.line()
        assert line.startswith((reply, self.REFUSED))
        while line and not line.startswith((self.END, self.REFUSED)):
            line = client.line()
        assert standing.connect().get(queue) in (b"first", None)

    @pytest.mark.parametrize(
        "exptime", [10**10, 2**53 // 1000, 2**63 // 1000 + 1, 2**64 // 1000 + 1, 10**18 - 1]
    )
    def test_of_a_time_far_off_is_one_that_does_not_come(self, client, queue, exptime):
        assert client.set(queue, b"x", exptime=exptime) == b"STORED\r\n"
        assert client.get(queue) == b"x"


class TestFlags:
    @pytest.mark.parametrize("flags", [0, 1, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
    def test_of_32_bits_come_back(self, client, queue, flags):
        client.set(queue, b"x", flags=flags)
        assert client.values(b"get " + queue) == [(queue, flags, None, b"x")]

    @pytest.mark.parametrize("flags", [1 << 32, -1])
    def test_of_more_are_refused(self, client, queue, flags):
        assert client.set(queue, b"x", flags=flags) == b"CLIENT_ERROR bad command line format\r\n"
        assert in_step(client)

    def test_of_a_large_item_survive_a_restart(self, server, wire):
        data = random.randbytes(CHUNK_BYTES * 3 + 1)
        wire.set(b"q", data, flags=0xDEADBEEF)
        wire.set(b"q", b"small", flags=7)
        server.restart()
        again = server.connect()
        assert again.values(b"get q") == [(b"q", 0xDEADBEEF, None, data)]
        assert again.values(b"get q") == [(b"q", 7, None, b"small")]


class TestExpiry:
    @pytest.mark.parametrize("exptime", [-1, -999_999_999, 2_592_001, 1_000_000_000])
    def test_in_the_past_keeps_an_item_from_being_seen(self, client, queue, exptime):
        assert client.set(queue, b"x", exptime=exptime) == b"STORED\r\n"
        assert client.get(queue + b"/peek") is None
        assert client.get(queue) is None

    @pytest.mark.parametrize("exptime", [0, 100, 2_592_000, 4_000_000_000, 999_999_999_999_999_999])
    def test_in_the_future_lets_it_be_seen(self, client, queue, exptime):
        assert client.set(queue, b"x", exptime=exptime) == b"STORED\r\n"
        assert client.get(queue) == b"x"

    def test_as_a_date_lets_it_be_seen_until_then(self, client, queue):
        client.set(queue, b"x", exptime=int(time.time()) + 100)
        assert client.get(queue) == b"x"

    def test_comes_to_pass(self, client, queue):
        client.set(queue, b"soon", exptime=1)
        client.set(queue, b"later", exptime=1000)
        assert client.get(queue + b"/peek") == b"soon"
        until(lambda: client.get(queue + b"/peek") == b"later", 3)
        assert client.get(queue) == b"later"

    @pytest.mark.leveldb("the cluster does not count expired items")
    def test_that_comes_to_pass_is_counted(self, client, queue):
        client.set(queue, b"soon", exptime=1)
        until(lambda: client.get(queue + b"/peek") is None, 3)
        assert client.stats()[f"queue_{queue.decode()}_expired_items"] == "1"

    def test_counts_what_was_passed_over(self, client, queue):
        for n in range(3):
            client.set(queue, b"%d" % n, exptime=-1)
        assert client.get(queue) is None
        stats = client.stats()
        assert stats[f"queue_{queue.decode()}_expired_items"] == "3"
        assert stats[f"queue_{queue.decode()}_items"] == "0"

    def test_of_a_large_item_keeps_it_from_being_seen(self, client, queue):
        client.set(queue, bytes(CHUNK_BYTES + 1), exptime=-1)
        client.set(queue, b"x")
        assert client.get(queue) == b"x"


class TestDelay:
    def test_keeps_an_item_out_of_sight_until_it_has_passed(self, client, queue):
        assert client.ask(b"set %s/delay=300 7 0 1\r\na\r\n" % queue) == b"STORED\r\n"
        client.set(queue, b"b")
        assert [client.get(queue), client.get(queue)] == [b"b", None]
        assert client.values(b"get %s/t=5000" % queue) == [(b"%s/t=5000" % queue, 7, None, b"a")]

    def test_holds_over_a_kill_for_items_of_any_size(self, server, wire):
        large = b"x" * (CHUNK_BYTES + 1)
        wire.send(b"set work/sync/delay=60000 0 0 %d\r\n%s\r\n" % (len(large), large))
        assert wire.line() == b"STORED\r\n"
        wire.send(b"set work/delay=1 0 0 %d\r\n%s\r\n" % (len(large), large))
        assert wire.line() == b"STORED\r\n"
        wire.send(b"set work/delay=2/sync 0 0 1 noreply\r\na\r\n")
        wire.ask(b"version\r\n")
        server.restart()
        again = server.connect()
        assert [again.get(b"work/t=5000") for _ in range(2)] == [large, b"a"]
        assert again.get(b"work") is None
        stats = again.stats()
        assert (stats["queue_work_items"], stats["queue_work_delayed_items"]) == ("0", "1")
        again.close()

    def test_that_is_no_number_is_refused(self, client, queue):
        assert client.ask(b"set %s/delay=x 0 0 3\r\nget\r\n" % queue).startswith(b"CLIENT_ERROR bad delay")
        assert client.get(queue) is None


class TestSize:
    @pytest.mark.parametrize(
        "size",
        [
            0,
            1,
            1024,
            CHUNK_BYTES - 1,
            CHUNK_BYTES,
            CHUNK_BYTES + 1,
            CHUNK_BYTES * 2,
            CHUNK_BYTES * 7 + 12_345,
        ],
    )
    def test_of_any_item_comes_back(self, client, queue, size):
        data = random.Random(size).randbytes(size)
        assert client.set(queue, data, flags=3) == b"STORED\r\n"
        assert client.values(b"get " + queue) == [(queue, 3, None, data)]
        assert client.get(queue) is None

    @pytest.mark.leveldb("above max_payload")
    def test_of_a_64_mib_item_comes_back_and_does_not_show_in_memory(self, server, wire):
        data = random.Random(64).randbytes(1 << 20) * 64
        before = server.resident_bytes
        assert wire.set(b"q", data) == b"STORED\r\n"
        assert wire.get(b"q") == data
        assert server.resident_bytes - before < 64 << 20

    def test_at_a_chunks_end_may_be_cut_anywhere(self, client, queue):
        data = random.Random(1).randbytes(CHUNK_BYTES * 2)
        request = b"set %s 0 0 %d\r\n%s\r\n" % (queue, len(data), data)
        head = len(request) - len(data) - 2
        cuts = [
            0,
            head - 1,
            head,
            head + CHUNK_BYTES - 1,
            head + CHUNK_BYTES,
            len(request) - 2,
            len(request) - 1,
        ]
        for start, stop in zip(cuts, [*cuts[1:], len(request)], strict=True):
            client.send(request[start:stop])
            time.sleep(0.01)  # so that the pieces arrive one by one
        assert client.line() == b"STORED\r\n"
        assert client.get(queue) == data


class TestBlock:
    def test_may_hold_line_ends_and_commands(self, client, queue):
        data = b"\r\nEND\r\nset q 0 0 1\r\nx\r\n\x80\x00\n"
        client.set(queue, data)
        assert client.get(queue) == data

    @pytest.mark.parametrize("size", [0, 3, CHUNK_BYTES, CHUNK_BYTES + 1, CHUNK_BYTES * 3])
    @pytest.mark.parametrize("tail", [b"x\r\n", b"\n", b"\rx", b"xx"])
    def test_without_its_end_is_an_error_that_closes_and_stores_nothing(
        self, standing, client, other, queue, size, tail
    ):
        client.send(b"set %s 0 0 %d\r\n%s" % (queue, size, b"a" * size) + tail)
        assert client.line() == b"CLIENT_ERROR bad data chunk\r\n"
        assert client.closed()
        assert other.get(queue) is None

    @pytest.mark.parametrize("size", [3, CHUNK_BYTES * 3])
    def test_that_never_comes_whole_stores_nothing(self, standing, queue, size):
        name = queue.decode()
        before = standing.stat("curr_connections")
        for go in ("close", "reset", "half_close"):
            gone = standing.connect()
            gone.send(b"set %s 0 0 1\r\nx\r\n" % queue)
            assert gone.line() == b"STORED\r\n"
            gone.send(b"set %s 0 0 %d\r\n%s" % (queue, size, b"a" * (size - 1)))
            getattr(gone, go)()
            if go == "half_close":
                assert gone.closed()
        until(lambda: standing.stat("curr_connections") <= before)
        assert standing.stat(f"queue_{name}_items") == 3

    @pytest.mark.parametrize(
        "line",
        [
            b"set %s 0 0 x",
            b"set %s 0 0 -1",
            b"set %s 0 0",
            b"set %s",
            b"set %s 0 0 1.5",
            b"set %s 0 0 +1",
            b"set %s 0 0 99999999999999999999999",
            b"set %s 0 0 noreply_not",
        ],
    )
    def test_of_unknown_size_is_an_error_that_closes(self, client, queue, line):
        client.send(line % queue + b"\r\nversion\r\n")
        assert client.line() == b"CLIENT_ERROR bad command line format\r\n"
        assert client.closed()

    @pytest.mark.parametrize(
        "line",
        [
            b"set %s x 0 7",
            b"set %s 0 x 7",
            b"set %s 0 1.5 7",
            b"set %s 0 0 7 norepl",
            b"set %s 0 0 7 a noreply",
            b"set %s 0x1 0 7",
            b"set %s 0 - 7",
            b"set %s 4294967296 0 7",
        ],
    )
    def test_of_a_refused_set_is_swallowed(self, client, queue, line):
        reply = client.ask(line % queue + b"\r\nquit\r\nq\r\n")
        if not line.endswith(b"noreply"):
            assert reply == b"CLIENT_ERROR bad command line format\r\n"
            assert in_step(client)
        assert client.get(queue) is None

    @pytest.mark.parametrize(
        "key", [b"a/b", b"a/open", b"a/syncx", b"a/sync/", b"a//sync", b"a/SYNC", b"n" * 251, b"a/t=5"]
    )
    def test_of_a_set_with_a_bad_name_or_option_is_swallowed(self, client, key):
        assert client.set(key, b"quit\r\nq").startswith(b"CLIENT_ERROR ")
        assert in_step(client)

    def test_of_a_refused_set_may_be_of_megabytes(self, client):
        assert client.set(b"a/b", b"quit\r\n" * 1_000_000).startswith(b"CLIENT_ERROR ")
        assert in_step(client)

    def test_of_several_refused_sets_is_swallowed_in_order(self, client, queue):
        client.send(
            b"set a/b 0 0 1\r\nx\r\nset %s 0 0 1\r\ny\r\nadd z 0 0 0\r\n\r\nset n x 0 1\r\nx\r\n" % queue
        )
        replies = [client.line().split(b" ")[0] for _ in range(4)]
        assert replies == [b"CLIENT_ERROR", b"STORED\r\n", b"CLIENT_ERROR", b"CLIENT_ERROR"]
        assert client.get(queue) == b"y"


class TestSync:
    @pytest.mark.parametrize("size", [0, 5, CHUNK_BYTES + 1])
    def test_stores(self, client, queue, size):
        assert client.set(queue + b"/sync", b"a" * size) == b"STORED\r\n"
        assert client.get(queue) == b"a" * size

    def test_keeps_the_order_of_replies_and_items(self, client, queue):
        request = b"".join(
            b"set %s%s 0 0 3\r\n%03d\r\nversion\r\n" % (queue, b"/sync" if n % 3 else b"", n)
            for n in range(300)
        )
        client.send(request + b"get %s\r\n" % queue * 300)
        for _ in range(300):
            assert client.line() == b"STORED\r\n"
            assert client.line().startswith(b"VERSION ")
        for n in range(300):
            assert client.line() == b"VALUE %s 0 3\r\n" % queue
            assert client.exactly(10) == b"%03d\r\nEND\r\n" % n

    def test_of_one_client_lets_a_get_of_another_wait_for_it(self, client, other, queue):
        for n in range(100):
            client.send(b"set %s/sync 0 0 3\r\n%03d\r\n" % (queue, n))
            other.send(b"get %s/t=5000\r\n" % queue)
            assert client.line() == b"STORED\r\n"
            assert other.line() == b"VALUE %s/t=5000 0 3\r\n" % queue
            assert other.exactly(10) == b"%03d\r\nEND\r\n" % n

    @pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
    @pytest.mark.leveldb("there are no files")
    def test_has_called_fsync_when_it_answers_and_a_plain_set_has_not(self, server, wire, tmp_path):
        calls = tmp_path / "calls"
        tracer = subprocess.Popen(
            ["strace", "-f", "-e", "trace=fsync,fdatasync", "-o", str(calls), "-p", str(server.process.pid)],
            stderr=subprocess.PIPE,
        )
        try:
            if b"attached" not in tracer.stderr.readline():
                pytest.skip("strace may not attach here")
            wire.set(b"q", b"x")  # creates the queue, which syncs LevelDB's first files
            before = calls.read_text().count("sync(")
            wire.set(b"q", b"x")
            assert calls.read_text().count("sync(") == before
            wire.set(b"q/sync", b"x")
            assert calls.read_text().count("sync(") > before
        finally:
            tracer.terminate()
            tracer.communicate(timeout=10)


class TestNoreply:
    @pytest.mark.parametrize("size", [0, 5, CHUNK_BYTES + 1])
    @pytest.mark.parametrize("option", [b"", b"/sync"])
    def test_set_is_stored_and_says_nothing(self, client, queue, size, option):
        client.send(b"set %s%s 0 0 %d noreply\r\n%s\r\n" % (queue, option, size, b"a" * size))
        assert in_step(client)
        assert client.get(queue) == b"a" * size

    @pytest.mark.parametrize("verb", VERBS)
    def test_unsupported_storage_verb_says_nothing_and_its_block_is_swallowed(self, client, verb):
        unique = b" 1" if verb == b"cas" else b""
        client.send(b"%s q 0 0 6%s noreply\r\nquit\r\n\r\n" % (verb, unique))
        assert in_step(client)

    @pytest.mark.parametrize(
        "line",
        [
            b"touch q 1 noreply",
            b"incr q 1 noreply",
            b"decr q 1 noreply",
            b"delete nowhere noreply",
            b"delete nowhere 0 noreply",
            b"delete a/b noreply",
            b"delete a b c noreply",
            b"flush nowhere noreply",
            b"flush a/b noreply",
            b"flush_all 1000 noreply",
            b"flush_all x noreply",
            b"flush_all 1 2 noreply",
            b"verbosity 1 noreply",
            b"verbosity x noreply",
        ],
    )
    def test_command_says_nothing(self, client, line):
        client.send(line + b"\r\n")
        assert in_step(client)

    @pytest.mark.parametrize(
        "line",
        [
            b"set a/b 0 0 6",
            b"set q x 0 6",
            b"set q/open 0 0 6",
            b"set q 0 -x 6",
            b"set %s 0 0 6" % (b"n" * 251),
        ],
    )
    def test_refused_set_says_nothing_and_its_block_is_swallowed(self, client, line):
        client.send(line + b" noreply\r\nquit\r\n\r\n")
        assert in_step(client)

    @pytest.mark.parametrize(
        "request_",
        [b"set q 0 0 1 noreply\r\nxyz\r\n", b"set q 0 0 x noreply\r\n", b"add q 0 0 1 noreply\r\nxyz\r\n"],
    )
    def test_fatal_error_says_nothing_and_closes(self, client, request_):
        client.send(request_)
        assert client.closed()

    def test_errors_are_counted(self, server, wire):
        wire.send(b"set a/b 0 0 1 noreply\r\nx\r\nadd q 0 0 1 noreply\r\nx\r\ntouch q 1 noreply\r\n")
        wire.send(
            b"set q 0 0 1 noreply\r\nx\r\ndelete q noreply\r\nverbosity x noreply\r\nflush a/b noreply\r\n"
        )
        assert wire.stats()["noreply_errors"] == "5"
        wire.ask(b"touch q 1\r\n")
        assert wire.stats()["noreply_errors"] == "5"
        fatal = server.connect()
        fatal.send(b"set q 0 0 1 noreply\r\nxyz")
        assert fatal.closed()
        assert wire.stats()["noreply_errors"] == "6"

    def test_commands_do_what_they_say(self, client, queue):
        client.set(queue, b"a")
        client.send(b"flush %s noreply\r\n" % queue)
        assert client.get(queue) is None
        client.set(queue, b"b")
        client.send(b"delete %s noreply\r\n" % queue)
        assert f"queue_{queue.decode()}_items" not in client.stats()

    def test_is_a_queue_where_a_name_is_due(self, client):
        client.set(b"noreply", b"x")
        assert client.ask(b"flush noreply\r\n") == b"END\r\n"
        assert client.ask(b"delete noreply\r\n") == b"DELETED\r\n"
