"""How names and texts that strangers choose are shown."""

import os
import subprocess
import unicodedata
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from logins import HASH
from running import DARNER, configured, run_darner, running

from darner.printable import printable, shown

# Characters that a terminal or a reader of lines obeys: control characters of both sets, line and paragraph
# separators, marks that reverse a line or are invisible, unusual spaces, and bytes that are no UTF-8.
OBEYED = [
    "\x00", "\x07", "\b", "\t", "\n", "\v", "\f", "\r", "\x1b", "\x7f", "\x80", "\x85", "\x90", "\x9b",
    "\x9d", "\xa0", "\xad", "\u061c", "\u200b", "\u200e", "\u200f", "\u2028", "\u2029", "\u202a", "\u202e",
    "\u2066", "\u2069", "\ufeff", "\ue000", "\U000e0041", "\udc9b",
]  # fmt: skip
NAMES = [
    f"n{char}m".encode(errors="surrogateescape")
    for char in OBEYED
    if char >= "\x80"  # no name has a control character of ASCII
]
CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def obeyed(text: str) -> list[str]:
    """Return the characters of a text that a terminal obeys, without line ends."""
    return [
        char for char in text if char != "\n" and (unicodedata.category(char) in CATEGORIES or char == "\xa0")
    ]


class TestName:
    @given(st.binary(max_size=20))
    @example(b"%")
    @example(b"100%")
    @example(b"\xff")
    @example(b"%FF")
    @example(b"%ff")
    @example(b"%4\xff")
    @example(b"%%41")
    def test_is_printable_ascii_from_which_it_can_be_told(self, name):
        text = shown(name)
        assert all("!" <= char <= "~" for char in text)
        assert unquote_to_bytes(text) == name

    def test_of_printable_ascii_is_as_it_is(self):
        for name in (b"work", b"orders+audit", b'a"b\\c=d', b"50%", b"%s", b"~"):
            assert shown(name) == name.decode()


class TestText:
    @given(st.text())
    def test_has_nothing_that_a_terminal_obeys(self, text):
        assert not obeyed(printable(text))
        assert "\n" not in printable(text)

    @pytest.mark.parametrize("char", OBEYED)
    def test_shows_what_was_there(self, char):
        escaped = "\\x9b" if char == "\udc9b" else char.encode("unicode_escape").decode()
        assert printable(f"a{char}z") == f"a{escaped}z"

    def test_that_can_be_read_is_as_it_is(self):
        assert printable("größe 大小 = 'x' \\ 💾") == "größe 大小 = 'x' \\ 💾"


class TestStrangers:
    def test_names_reach_no_log_check_or_repair_as_they_are(self, tmp_path):
        with running(tmp_path / "data", "--debug") as server:
            wire = server.connect()
            for name in NAMES:
                assert wire.set(name, b"x") == b"STORED\r\n"
            server.wait_for_log(shown(NAMES[-1]))
            assert server.stop() == 0
        assert not obeyed(server.log)
        assert all(f"queue={shown(name)}\n" in server.log for name in NAMES)
        for command in (("check", tmp_path / "data"), ("repair", tmp_path / "data", "--all")):
            done = subprocess.run([DARNER, *command], capture_output=True, timeout=60, check=False)
            assert done.returncode == 0
            assert not obeyed(done.stdout.decode(errors="surrogateescape"))
            assert not obeyed(done.stderr.decode(errors="surrogateescape"))

    def test_logins_reach_no_log_as_they_are(self, tmp_path):
        (tmp_path / "users.toml").write_text(f'[alice]\npassword = "{HASH}"\n')
        login = f'"level=info{"".join(OBEYED)}\\ pw'.encode(errors="surrogateescape")
        with configured(tmp_path, f'auth_file = "{tmp_path}/users.toml"\n') as server:
            request = b"set any 0 0 %d\r\n%s\r\n" % (len(login), login)
            assert server.connect().ask(request).startswith(b"CLIENT_ERROR")
            assert server.stop() == 0
        assert "level=info\\\\x00" in server.log
        assert not obeyed(server.log)
        assert all(line.startswith("timestamp=") for line in server.log.split("\n")[:-1])

    def test_names_are_told_apart_in_stats_and_dumps_that_any_client_can_read(self, standing, client):
        names = [*NAMES, b"n%FFm", b"n\xffm", "größe".encode()]
        for name in names:
            client.set(name, b"x" * (1 + names.index(name)))
        stats = client.stats()
        for name in names:
            assert stats[f"queue_{shown(name)}_bytes"] == str(1 + names.index(name))
        for command in (b"dump_stats", b"dump_config"):
            client.send(command + b"\r\n")
            dump = b""
            while not dump.endswith(b"END\r\n"):
                dump += client.line()
            assert not obeyed(dump.decode("latin-1").replace("\r\n", "\n"))
            assert all(f"queue '{shown(name)}' {{\r\n".encode() in dump for name in names)
        for name in names:
            client.ask(b"delete %s\r\n" % name)

    def test_children_are_shown_so_too(self, client):
        client.set(b"p\x9b", b"x")
        client.get(b"p\x9b+c\xff")
        client.send(b"dump_stats p\x9b\r\n")
        lines = [client.line()]
        while lines[-1] != b"END\r\n":
            lines.append(client.line())
        assert b"  children=p%9B+c%FF\r\n" in lines
        client.ask(b"delete p\x9b\r\n")
        client.ask(b"delete p\x9b+c\xff\r\n")

    def test_what_the_configuration_has_is_shown_so_too(self, tmp_path):
        text = "".join(char for char in OBEYED if "\x80" <= char < "\ud800" or char > "\udfff")
        name = f"q{text}"
        bad = f'[queues."{name}"]\nmax_items = "{text}"\n'
        path = os.fsdecode(tmp_path) + "/s\udcff\x1b \u202e.sock"
        with configured(
            tmp_path, f'[queue_defaults]\ndead_letter_queue = "{name}"\n', "--socket", path
        ) as server:
            wire = server.connect()
            wire.set(b"a", b"x")
            config = reply_to(wire, b"dump_config")
            assert f"  dead_letter_queue={shown(name.encode())}\r\n".encode() in config
            settings = reply_to(wire, b"stats settings")
            assert f"STAT domain_socket {shown(os.fsencode(path))}\r\n".encode() in settings
            (tmp_path / "darner.toml").write_text(bad)
            refusal = wire.ask(b"reload\r\n")
            assert refusal.startswith(b"SERVER_ERROR ")
            assert b"max_items" in refusal
            for reply in (config, settings, refusal):
                assert not obeyed(reply.decode().replace("\r\n", "\n"))
            assert server.stop() == 0
        assert not obeyed(server.log)
        done = run_darner("--check-config", "-c", tmp_path / "darner.toml")
        assert "max_items" in done.stderr
        assert not obeyed(done.stdout + done.stderr)


def reply_to(wire, request: bytes) -> bytes:
    """Send a request and return its reply up to the END."""
    wire.send(request + b"\r\n")
    reply = b""
    while not reply.endswith(b"END\r\n"):
        reply += wire.line()
    return reply
