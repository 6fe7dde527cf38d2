"""Files and directories are for their owner alone."""

import contextlib
import stat

from running import DARNER, running, until

from darner._records import CHUNK_BYTES


def test_files_are_0600_and_directories_0700_whatever_the_umask(tmp_path):
    command = ("sh", "-c", 'umask 000; exec "$0" "$@"', DARNER)
    data = tmp_path / "data"
    with running(data, command=command) as server:
        for _ in range(2):
            with contextlib.closing(server.connect()) as wire:
                for name in (b"work", b"\xff" * 200, b"deleted"):
                    for size in (10, CHUNK_BYTES * 3):
                        assert wire.set(name, bytes(size)) == b"STORED\r\n"
                assert wire.set(b"work/sync", bytes(CHUNK_BYTES * 2)) == b"STORED\r\n"
                wire.get(b"work")
                wire.get(b"work/open")
                assert wire.ask(b"delete deleted\r\n") == b"DELETED\r\n"
                assert wire.ask(b"flush work\r\n") == b"END\r\n"
                wire.set(b"work", bytes(CHUNK_BYTES * 2))
            # at the next open LevelDB makes other files
            server.restart()
        until(lambda: not any((data / ".trash").iterdir()))
        found = [data, *data.rglob("*")]
        assert any(path.parent.name == "blobs" for path in found)
        assert len(found) > 15
        for path in found:
            mode = path.stat().st_mode
            assert stat.S_IMODE(mode) == (0o700 if stat.S_ISDIR(mode) else 0o600), path
