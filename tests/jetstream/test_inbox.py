"""What is sent to a subscription that ends, by a node that a test plays."""

import asyncio
from collections import deque

from nats.aio.client import Client

from darner.jetstream.link import Inbox

INFO = b'INFO {"server_id":"played","version":"2.14.5","max_payload":1048576,"headers":true}\r\n'
# Long enough for nats-py to act on a PONG before it gets what comes behind.
REST_S = 0.1


class Node(asyncio.Protocol):
    """A node that sends one more message before it ends a subscription, and rests after a PONG."""

    def __init__(self) -> None:
        self._read = b""
        self._lines: deque[bytes] = deque()
        self._is_resting = False
        self._subjects: dict[bytes, bytes] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        transport.write(INFO)

    def data_received(self, data: bytes) -> None:
        *lines, self._read = (self._read + data).split(b"\r\n")
        self._lines.extend(lines)
        self._go_on()

    def _go_on(self) -> None:
        while self._lines and not self._is_resting:
            verb, *words = self._lines.popleft().split()
            if verb == b"PING":
                self._transport.write(b"PONG\r\n")
                self._is_resting = True
                asyncio.get_running_loop().call_later(REST_S, self._end_rest)
            elif verb == b"SUB":
                self._subjects[words[-1]] = words[0]
            elif verb == b"UNSUB" and words[0] in self._subjects:
                subject = self._subjects.pop(words[0])
                self._transport.write(b"MSG %b %b 4\r\nlast\r\n" % (subject, words[0]))

    def _end_rest(self) -> None:
        self._is_resting = False
        self._go_on()


def test_a_message_that_crosses_the_end_of_a_subscription_is_taken():
    async def close_one() -> list[bytes]:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Node, "127.0.0.1", 0)
        client = Client()
        await client.connect(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        inbox = Inbox(client)
        await inbox.open()
        await client.flush()
        late: list[bytes] = []
        await inbox.close(lambda message: late.append(message.data))
        await client.flush()
        await client.close()
        server.close()
        return late

    assert asyncio.run(close_one()) == [b"last"]
