"""Clients that do not read, do not stop, do not finish, or have vanished."""

import contextlib
import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from running import running, until

from darner._records import CHUNK_BYTES

MIB = 1 << 20
# An ioctl of Linux: the bytes sent that the peer has not received.
SIOCOUTQ = 0x5411


def waits_to_send(wire) -> bool:
    """Return whether the peer has not received much of what was sent."""
    return int.from_bytes(fcntl.ioctl(wire.socket, SIOCOUTQ, bytes(4)), sys.byteorder) > 100_000


class TestUnreadReplies:
    @pytest.mark.parametrize(
        ("size", "request_"),
        [
            pytest.param(
                8 * MIB, b"get q/peek\r\n" * 2000, id="large", marks=pytest.mark.leveldb("above max_payload")
            ),
            pytest.param(CHUNK_BYTES, b"get q/peek\r\n" * 20_000, id="small"),
            pytest.param(CHUNK_BYTES, b"get " + b"q/peek " * 280 + b"\r\n", id="several-keys"),
            pytest.param(100, b"stats\r\n" * 20_000, id="stats"),
            pytest.param(100, b"nonsense\r\n" * 1_000_000, id="errors"),
        ],
    )
    def test_take_bounded_memory(self, server, wire, size, request_):
        wire.set(b"q", bytes(size))
        if size == 100:
            for n in range(40):
                wire.set(b"q%d" % n, bytes(size))
        before = server.resident_bytes
        # a `stats` takes long
        clients = [server.connect() for _ in range(8 if request_.startswith(b"stats") else 20)]
        for client in clients:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.socket.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.socket.send(request_)
        largest = 0
        for _ in range(20):
            wire.ask(b"get nothing/t=50\r\n")
            largest = max(largest, server.resident_bytes)
        assert largest - before < 64 * MIB
        for client in clients:
            client.reset()
        until(lambda: server.stat("curr_connections") == 2)

    def test_are_all_there_once_they_are_read(self, client, queue):
        data = random.Random(5).randbytes(CHUNK_BYTES)
        client.set(queue, data)
        key = queue + b"/peek"
        client.send((b"get " + (key + b" ") * 100 + b"\r\n") * 20 + b"get %s\r\nversion\r\n" % key * 200)
        value = b"VALUE %s 0 %d\r\n%s\r\n" % (key, len(data), data)
        for _ in range(20):
            for _ in range(100):
                assert client.exactly(len(value)) == value
            assert client.line() == b"END\r\n"
        for _ in range(200):
            assert client.exactly(len(value)) == value
            assert client.line() == b"END\r\n"
            assert client.line().startswith(b"VERSION ")


@contextlib.contextmanager
def stopped(server):
    """Stop the server's process meanwhile, so that requests wait for it."""
    server.process.send_signal(signal.SIGSTOP)
    try:
        until(lambda: server.process_stat[0] == "T")
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)


class TestReset:
    """A client that is killed with unread replies: its connection is reset, which a server that writes learns
    in another way than one that reads."""

    COUNT = 40

    @pytest.mark.parametrize(
        "size", [100, 60_000, 3 * CHUNK_BYTES], ids=["small", "as large as a line may be", "a file each"]
    )
    @pytest.mark.parametrize("request_", [b"get q\r\n", b"get q empty\r\n"])
    def test_has_no_more_taken_than_was_about_to_be_sent(self, server, wire, size, request_):
        count = self.COUNT if size > 100 else 3000
        for _ in range(count):
            wire.send(b"set q 0 0 %d\r\n%s\r\n" % (size, bytes(size)))
        assert all(wire.line() == b"STORED\r\n" for _ in range(count))
        client = server.connect()
        client.ask(b"version\r\n")
        with stopped(server):
            client.send(request_ * count)
            client.reset()
        until(lambda: server.stat("curr_connections") == 2)
        taken = count - server.stat("queue_q_items")
        # what is sent in one turn
        assert taken <= (520 if size == 100 else 10 if size == 60_000 else 2)

    @pytest.mark.parametrize("request_", [b"get q/t=60000", b"get q/t=60000/open", b"monitor q 60 1"])
    def test_of_one_who_waits_costs_no_item_that_comes_after_it(self, server, wire, request_):
        client = server.connect()
        client.send(request_ + b"\r\n")
        until(lambda: server.stat("queue_q_waiters") == 1)
        with stopped(server):
            client.reset()
            wire.send(b"set q 0 0 1\r\nx\r\n")
        assert wire.line() == b"STORED\r\n"
        assert wire.gets(b"q") == (1, b"x")


class TestFiles:
    """The descriptors that large items take."""

    COUNT = 40
    LARGE = bytes(8 * MIB)
    # for a LevelDB that is opened meanwhile, and for the connection that asks for `stats`
    OTHERS = 10

    @pytest.mark.leveldb("above max_payload")
    def test_of_one_get_of_many_are_open_one_at_a_time(self, server, wire):
        wire.set(b"q", self.LARGE)
        before = server.descriptors
        client = server.connect()
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.send(b"get" + b" q/peek" * 290 + b"\r\n")
        until(lambda: server.stat("cmd_peek") == 1)
        assert server.descriptors < before + self.OTHERS
        client.reset()
        until(lambda: server.stat("curr_connections") == 2)

    @pytest.mark.leveldb("cursors are refused")
    def test_of_one_get_of_many_are_all_sent(self, server, wire):
        wire.set(b"q", bytes(CHUNK_BYTES + 1))
        assert len(wire.values(b"get" + b" q/peek q/cursor=c" * 20)) == 21

    @pytest.mark.leveldb("there are no files")
    def test_that_are_sent_in_part_are_not_open(self, server, wire):
        wire.set(b"q", b"x")
        before = server.descriptors
        clients = [server.connect() for _ in range(self.COUNT)]
        for client in clients:
            client.send(b"set q 0 0 %d\r\n" % len(self.LARGE) + self.LARGE[: 3 * MIB])
        size = (3 * MIB) // CHUNK_BYTES * CHUNK_BYTES
        until(lambda: all(file.stat().st_size > size for file in (server.data / "q" / "blobs").iterdir()))
        assert len(list((server.data / "q" / "blobs").iterdir())) == self.COUNT
        until(lambda: server.descriptors < before + self.COUNT + self.OTHERS)
        clients[0].send(self.LARGE[3 * MIB :] + b"\r\n")
        assert clients[0].line() == b"STORED\r\n"
        for client in clients:
            client.reset()
        until(lambda: server.descriptors < before + self.OTHERS)
        until(lambda: len(list((server.data / "q" / "blobs").iterdir())) == 1)

    @pytest.mark.parametrize(
        "request_", [b"get q/peek", b"get q/peek/t=60000", b"get nobody/t=60000", b"monitor nobody 60"]
    )
    @pytest.mark.parametrize("behind", [b"", b"get nobody\r\n" * 20_000], ids=["", "much behind it"])
    def test_of_those_who_reset_while_they_wait_or_read_are_given_back(self, server, wire, request_, behind):
        wire.set(b"q", self.LARGE)
        before = server.descriptors
        clients = [server.connect() for _ in range(self.COUNT)]
        for client in clients:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.send(request_ + b"\r\n" + behind)
        until(lambda: server.stat("curr_connections") == self.COUNT + 2)
        if b"nobody" in request_:
            until(lambda: server.stat("queue_nobody_waiters") == self.COUNT)
        for client in clients:
            client.reset()
        until(lambda: server.descriptors < before + self.OTHERS)
        assert server.stat("queue_nobody_waiters") == 0


class TestPipelineOfAMillion:
    COUNT = 1_000_000
    # more than the kernel buffers; a million that each ask a cluster take minutes
    IN_CLUSTER = 20_000

    @pytest.mark.parametrize(
        ("request_", "reply", "figure"),
        [
            (b"get q\r\n", b"END\r\n", "cmd_get"),
            (b"set q 0 0 1\r\nx\r\n", b"STORED\r\n", "cmd_set"),
            (b"nonsense q\r\n", b"ERROR\r\n", "bytes_written"),
        ],
        ids=["get", "set", "nonsense"],
    )
    def test_starves_nobody(self, server, wire, request_, reply, figure, store):
        """Count requests and not seconds, as the machine may be busy with other work."""
        count = self.IN_CLUSTER if store == "cluster" and figure.startswith("cmd_") else self.COUNT
        # a server of its own, whose `stats` are short, and add little to `bytes_written`
        client, other = server.connect(), wire
        unit = len(reply) if figure == "bytes_written" else 1
        before = int(other.stats()[figure])
        sender = threading.Thread(target=client.send, args=(request_ * count,))
        size = len(reply) * 10_000
        replies = set()
        reader = threading.Thread(
            target=lambda: replies.update(client.exactly(size) for _ in range(count // 10_000))
        )
        with stopped(server):
            sender.start()
            # it has filled the buffers of the kernel
            until(lambda: waits_to_send(client))
            other.send(b"version\r\nstats\r\n")
        reader.start()
        assert other.line().startswith(b"VERSION ")
        # both arrived at the same time
        served = (int(other.stats_reply()[figure]) - before) // unit
        answered = 0
        while reader.is_alive():
            assert other.ask(b"version\r\n").startswith(b"VERSION ")
            answered += 1
        sender.join()
        reader.join()
        assert replies == {reply * 10_000}
        assert served < min(self.COUNT / 100, count / 20)
        assert answered > count / 100_000


class TestHalfARequest:
    @pytest.mark.parametrize(
        "half", [b"g", b"get q", b"version\r", b"set q 0 0 10\r\nabc", b"set q 0 0 3\r\nabc\r"]
    )
    def test_costs_no_processor_time(self, server, wire, half):
        wire.send(half)
        other = server.connect()
        other.ask(b"version\r\n")
        before = server.processor_s
        other.ask(b"get nothing/t=500\r\n")
        assert server.processor_s - before < 0.2

    @pytest.mark.leveldb("above max_payload")
    def test_behind_an_unread_reply_costs_no_processor_time(self, server, wire):
        wire.set(b"q", bytes(32 * MIB))
        wire.send(b"get q/peek\r\nget q")
        other = server.connect()
        other.ask(b"get nothing/t=300\r\n")
        before = server.processor_s
        other.ask(b"get nothing/t=500\r\n")
        assert server.processor_s - before < 0.2

    @pytest.mark.parametrize(
        "request_",
        [
            b"set q 0 0 %d\r\n" % (64 * MIB) + bytes(4 * MIB),
            b"set q/refused 0 0 %d\r\n" % (64 * MIB) + bytes(4 * MIB),
            b"set q 0 0 %d\r\n" % CHUNK_BYTES + bytes(CHUNK_BYTES - 1),
            b"get q/t=60000\r\n" + b"version\r\n" * 500_000,
            b"get q/peek/t=60000\r\n" + b"set q 0 0 1000\r\n" + bytes(4 * MIB),
        ],
        ids=["large", "refused", "small", "behind-a-wait", "data-behind-a-wait"],
    )
    def test_holds_a_bounded_buffer(self, server, wire, request_):
        before = server.resident_bytes
        clients = [server.connect() for _ in range(40)]
        for client in clients:
            client.socket.settimeout(0.05)
            # the server does not read from a waiting client: what the kernel does not buffer stays here
            with contextlib.suppress(TimeoutError):
                client.send(request_)
        wire.ask(b"get nothing/t=100\r\n")
        # a quarter of the bytes sent, or less
        assert server.resident_bytes - before < 40 * MIB
        for client in clients:
            client.reset()
        until(lambda: server.stat("curr_connections") == 2)

    def test_of_many_clients_is_no_hindrance(self, standing, client, queue):
        before = standing.stat("curr_connections")
        halves = [standing.connect() for _ in range(200)]
        for half in halves:
            half.send(b"set %s 0 0 %d\r\nabc" % (queue, CHUNK_BYTES * 2))
        assert client.set(queue, b"x") == b"STORED\r\n"
        assert client.get(queue) == b"x"
        for half in halves:
            half.close()
        until(lambda: standing.stat("curr_connections") <= before)


class TestErrorThatCloses:
    @pytest.mark.parametrize(
        ("start", "error"),
        [
            (b"x" * 3000, b"CLIENT_ERROR line too long\r\n"),
            (b"set q 0 0 1\r\nxyz", b"CLIENT_ERROR bad data chunk\r\n"),
            (b"set q 0 0 x\r\n", b"CLIENT_ERROR bad command line format\r\n"),
            (
                b"set q 0 0 %d\r\n%sxx" % (CHUNK_BYTES * 2, bytes(CHUNK_BYTES * 2)),
                b"CLIENT_ERROR bad data chunk\r\n",
            ),
        ],
    )
    def test_is_read_by_a_client_that_goes_on_sending(self, client, start, error):
        client.send(start + bytes(MIB) * 30)
        assert client.line() == error
        assert client.closed()

    def test_is_read_behind_replies_not_read_yet(self, client, queue):
        data = bytes(CHUNK_BYTES)
        client.set(queue, data)
        key = queue + b"/peek"
        count = 400

        def send():
            with contextlib.suppress(ConnectionError):  # the server does not wait for the end without limit
                client.send(b"get %s\r\n" % key * count + b"x" * 3000 + bytes(MIB) * 30)

        sending = threading.Thread(target=send)
        sending.start()
        value = b"VALUE %s 0 %d\r\n%s\r\nEND\r\n" % (key, len(data), data)
        for _ in range(count):
            assert client.exactly(len(value)) == value
        assert client.line() == b"CLIENT_ERROR line too long\r\n"
        sending.join()
        assert client.closed()

    def test_closes_a_client_that_never_stops(self, server):
        wire = server.connect()
        start = time.monotonic()
        with contextlib.suppress(ConnectionError):
            wire.send(b"x" * 3000)
            while time.monotonic() - start < 20:
                wire.send(bytes(1000))
        assert time.monotonic() - start < 10
        until(lambda: server.stat("curr_connections") == 1)


class TestStorm:
    def test_of_random_bytes_hurts_nobody(self, standing, client, queue):
        before = standing.stat("curr_connections")
        dice = random.Random(7)
        client.set(queue, b"x")
        for _ in range(200):
            noise = standing.connect()
            with contextlib.suppress(ConnectionError):
                noise.send(dice.randbytes(dice.randrange(5000)))
                noise.send(b"\r\n")
            noise.close() if dice.random() < 0.5 else noise.reset()
        assert client.get(queue) == b"x"
        until(lambda: standing.stat("curr_connections") <= before)

    def test_of_broken_requests_hurts_nobody(self, standing, client, queue):
        before = standing.stat("curr_connections")
        dice = random.Random(8)
        words = [
            b"get",
            b"set",
            b"gets",
            b"delete",
            b"flush",
            b"add",
            b"cas",
            b"stats",
            b"0",
            b"1",
            b"-1",
            b"5",
            b"x",
            b"noreply",
            b"/open",
            b"/",
            b" ",
            b"\r\n",
            b"\n",
            b"\r",
            b"\x80",
            b"\x00",
            b"99999999999",
            b"n" * 251,
            queue,
            queue + b"/open",
            queue + b"/close/open/t=5",
            queue + b"/peek",
            b"set %s 0 0 2\r\nab\r\n" % queue,
        ]
        for _ in range(300):
            noise = standing.connect()
            with contextlib.suppress(ConnectionError):
                noise.send(b" ".join(dice.choices(words, k=dice.randrange(1, 40))) + b"\r\n")
            noise.reset() if dice.random() < 0.3 else noise.close()
        until(lambda: standing.stat("curr_connections") <= before)
        assert standing.stat(f"queue_{queue.decode()}_open_transactions") == 0
        assert standing.stat(f"queue_{queue.decode()}_waiters") == 0
        client.ask(b"flush %s\r\n" % queue)
        client.set(queue, b"x")
        assert client.get(queue) == b"x"

    def test_of_connections_that_go_at_once_leaves_none(self, standing):
        before = standing.stat("curr_connections")
        for n in range(500):
            wire = standing.connect()
            wire.reset() if n % 2 else wire.close()
        until(lambda: standing.stat("curr_connections") <= before)


class TestDeadPeer:
    """A peer whose machine has vanished: no FIN and no RST ever comes."""

    @pytest.fixture
    def config(self, tmp_path):
        config = tmp_path / "darner.toml"
        config.write_text("keepalive = 1\n")
        return str(config)

    @pytest.mark.skipif(not shutil.which("ss"), reason="ss (iproute2) is not installed")
    def test_is_probed(self, server, wire):
        wire.ask(b"version\r\n")
        sockets = subprocess.run(
            ["ss", "-tnoH", "state", "established", "sport", "=", f":{server.port}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "timer:(keepalive," in sockets

    @pytest.fixture
    def namespace(self):
        """The name of a network namespace at 10.213.7.2, whose link can be cut."""
        if os.geteuid() or not shutil.which("ip"):
            pytest.skip("making a network namespace takes root and ip (iproute2)")
        name = f"darner{os.getpid()}"
        commands = [
            f"ip netns add {name}",
            f"ip link add {name}a type veth peer name {name}b netns {name}",
            f"ip addr add 10.213.7.1/30 dev {name}a",
            f"ip link set {name}a up",
            f"ip -n {name} addr add 10.213.7.2/30 dev {name}b",
            f"ip -n {name} link set {name}b up",
        ]
        try:
            for command in commands:
                done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
                if done.returncode:
                    pytest.skip(f"no network namespace to be had: {command}: {done.stderr.strip()}")
            yield name
        finally:
            for command in (f"ip link del {name}a", f"ip netns del {name}"):
                subprocess.run(command.split(), capture_output=True, check=False)

    def test_gives_back_what_it_held(self, tmp_path, config, namespace):
        with running(tmp_path / "data", "--host", "0.0.0.0", "-c", config) as server:
            wire = server.connect()
            wire.set(b"q", b"x")
            code = (
                "import socket, sys\n"
                f"peer = socket.create_connection(('10.213.7.1', {server.port}), timeout=10)\n"
                "peer.sendall(b'get q/open\\r\\n')\n"
                "print(peer.recv(100), flush=True)\n"
                "sys.stdin.read()\n"
            )
            peer = subprocess.Popen(
                ["ip", "netns", "exec", namespace, sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            try:
                assert b"VALUE q/open 0 1" in peer.stdout.readline()
                assert wire.get(b"q") is None
                subprocess.run(["ip", "-n", namespace, "link", "set", f"{namespace}b", "down"], check=True)
                assert wire.ask(b"get q/t=30000\r\n") == b"VALUE q/t=30000 0 1\r\n"
                assert server.stat("curr_connections") == 2
            finally:
                peer.communicate()
