"""What a client may meet in place of a sound server."""

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterator


class Proxy:
    """Passes bytes between clients and a server; loses `to_lose` replies, and their connections with them."""

    def __init__(self, port: int) -> None:
        self.to_lose = 0
        self.connections = 0
        self._muted = 0
        self._is_over = threading.Event()
        self._server = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def mute(self) -> None:
        """Pass nothing more between those that are connected now, and close nothing, as a firewall may."""
        self._muted = self.connections

    def close(self) -> None:
        self._is_over.set()
        # only this ends an `accept` under way
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._pass, args=(client, self.connections), daemon=True).start()

    def _pass(self, client: socket.socket, number: int) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self._server) as server:
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    if number <= self._muted:
                        self._is_over.wait()
                        return
                    data = ready.recv(1 << 16)
                    if not data:
                        return
                    if ready is client:
                        server.sendall(data)
                    elif self.to_lose:
                        self.to_lose -= 1
                        return
                    else:
                        client.sendall(data)


@contextlib.contextmanager
def proxy(port: int) -> Iterator[Proxy]:
    """Start a proxy before the server at this port."""
    one = Proxy(port)
    try:
        yield one
    finally:
        one.close()


@contextlib.contextmanager
def peer(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Listen, and serve each connection by a function, one after the other; gives the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    serve(connection)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def says(reply: bytes) -> contextlib.AbstractContextManager[int]:
    """Return a peer that answers whatever comes first on a connection with these bytes, then closes it."""

    def serve(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(reply)

    return peer(serve)


@contextlib.contextmanager
def silence() -> Iterator[int]:
    """Listen, accept and never answer; gives the port."""
    is_over = threading.Event()
    with peer(lambda _: bool(is_over.wait(60)) and None) as port:
        try:
            yield port
        finally:
            is_over.set()
