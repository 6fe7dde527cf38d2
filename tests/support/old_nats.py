"""A server that says it is an old nats-server, and nothing else."""

import contextlib
import json
import re
import socket
import threading
from collections.abc import Iterator

_SENT = re.compile(rb"(?:PUB (\S+) (?:(\S+) )?(\d+)\r\n|SUB (\S+) +(\S+)\r\n|(PING)\r\n)")


@contextlib.contextmanager
def old_nats(version: str) -> Iterator[str]:
    """Serve one client; gives the URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_serve, args=(listener, version), daemon=True)
        thread.start()
        yield f"nats://127.0.0.1:{listener.getsockname()[1]}"
    thread.join(10)


def _serve(listener: socket.socket, version: str) -> None:
    with contextlib.suppress(OSError):
        client, _ = listener.accept()
        info = {"server_id": "old", "version": version, "headers": True, "max_payload": 1 << 20}
        client.sendall(b"INFO %s\r\n" % json.dumps(info).encode())
        received, ids = b"", {}
        while data := client.recv(65536):
            received += data
            while match := _SENT.search(received):
                size = int(match[3] or 0)
                if len(received) < match.end() + size:
                    break
                received = received[match.end() + size :]
                if match[6]:
                    client.sendall(b"PONG\r\n")
                elif match[4]:
                    ids[match[4]] = match[5]
                elif match[1].endswith(b"CONNZ"):
                    said = json.dumps({"server": {"name": "n1", "ver": version}}).encode()
                    id = ids[match[2].rpartition(b".")[0] + b".*"]
                    client.sendall(b"MSG %s %s %d\r\n%s\r\n" % (match[2], id, len(said), said))
        client.close()
