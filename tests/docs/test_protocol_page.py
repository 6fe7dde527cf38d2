"""docs/protocol.md: its tables have what the parser and the commands have, and each error comes as told."""

import contextlib
import re

from blocks import ROOT, blocks

from darner import meta_flags
from darner._proto import MAX_GET_LINE_BYTES, MAX_LINE_BYTES, Verb
from darner.access import pending_connection
from darner.wire import replies
from darner.wire.commands import any_get

PATH = ROOT / "docs" / "protocol.md"
PAGE = PATH.read_text()
PARSER = (ROOT / "darner" / "_proto.pyx").read_text()
# what the parser hands on for parts of a request, and for what is none
PARTS = {"GET_END", "SET_BEGIN", "SET_CHUNK", "SET_END", "REFUSED", "FATAL", "BINARY", "TLS", "HTTP"}
# these come as a get, a set or a delete
META = {"mg", "ms", "md"}
SERVER = ("access", "jetstream", "queues", "server", "wire")
# what only meta commands are told, in two letters
NEVER_SENT = {"NOT_FOUND"}
SENT = [
    line.split()
    for block in blocks(PATH)
    if block.kind == "session"
    for line in re.findall(r"^C\d?: (.+)$", block.text, re.MULTILINE)
]


def table(chapter: str, column: int = 0) -> list[list[str]]:
    """Return what stands as code in a column of the first table of a chapter, row by row."""
    text = re.search(rf"^## {chapter}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]
    rows = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)[0].splitlines()[2:]
    return [re.findall(r"`(.+?)`", row.strip("| ").split(" | ")[column]) for row in rows]


def words_of_the_parser() -> set[str]:
    """Return each command that the parser knows."""
    unsupported = re.search(r"cdef dict UNSUPPORTED = \{(.*?)^\}", PARSER, re.DOTALL | re.MULTILINE)[1]
    refused = set(re.findall(r'\(b"(\w+)", (?:True|False)\)', unsupported))
    return {verb.name.lower() for verb in Verb if verb.name not in PARTS} | META | refused


def fixed_replies() -> set[str]:
    """Return each reply and error text that is always the same."""
    errors = re.findall(r"^cdef bytes E_\w+ = \(?((?:\s*b\"[^\"]*\")+)\)?", PARSER, re.MULTILINE)
    found = {"".join(re.findall(r'b"([^"]*)"', error)) for error in errors}
    found = {text.removesuffix(r"\r\n") for text in found}
    for module in (replies, pending_connection, any_get, meta_flags):
        texts = [value for value in vars(module).values() if isinstance(value, bytes)]
        found |= {text.decode().removesuffix("\r\n") for text in texts if text.endswith(b"\r\n")}
    # whatever floor of the server replies it
    for folder in SERVER:
        for path in (ROOT / "darner" / folder).rglob("*.py"):
            found |= set(re.findall(r'b"((?:CLIENT|SERVER)_ERROR [^"\\]+)\\r\\n"', path.read_text()))
    return found | {status.decode() for status in meta_flags.STATUSES.values()} - NEVER_SENT


FIXED_ERRORS = dict(zip([error for (error,) in table("Errors")], table("Errors", 1), strict=True))


class TestTables:
    def test_have_each_command_and_no_other(self):
        first = {text for row in table("Commands") for text in row}
        words = {word for text in first for word in text.partition(" ")[0].split()}
        listed = [
            text for text in first if re.fullmatch(r"[a-z ]+", text) and text.split()[0] in ("add", "mg")
        ]
        words |= {word for text in listed for word in text.split()}
        assert words == words_of_the_parser()

    def test_have_each_option_of_get_and_of_set(self):
        of_get, of_set = (
            set(re.findall(r"[a-z]+", re.sub(r"<\w+>", "", error.partition(" takes ")[2])))
            for verb in ("get", "set")
            for error in FIXED_ERRORS
            if error.startswith(f"CLIENT_ERROR unknown option: {verb}")
        )
        options = re.sub(r"<\w+>", "", " ".join(text for row in table("Fetching") for text in row))
        assert set(re.findall(r"[a-z]+", options)) == of_get
        line = re.search(r"^Options of `set` are (.*?)\.", PAGE, re.MULTILINE)[1]
        assert set(re.findall(r"`(\w+)", line)) == of_set

    def test_have_each_flag_of_the_meta_commands(self):
        rows = re.search(r"^## Meta commands\n(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)[1]
        for verb, flags in meta_flags.FLAGS.items():
            row = re.search(rf"^\| `{verb.decode()} .*$", rows, re.MULTILINE)[0]
            told = re.search(r"Flags: `([\w ]+)`", row)[1].split()
            assert sorted(told) == sorted(map(chr, flags))

    def test_have_each_fixed_reply_and_no_other_error(self):
        listed = {text for row in table("Replies") for text in row} | {*FIXED_ERRORS}
        # of the longer ones the table has what may follow
        assert fixed_replies() - listed - NEVER_SENT == set()
        assert {*FIXED_ERRORS} - fixed_replies() == set()

    def test_say_how_long_a_line_may_be(self):
        assert f"{MAX_LINE_BYTES:,} bytes" in PAGE
        assert MAX_GET_LINE_BYTES == 1 << 20
        assert "at most 1 MiB" in PAGE


class TestExamples:
    def test_show_each_command(self):
        commands = {words[0].lower() for words in SENT if words}
        refused = {"add", "replace", "append", "prepend", "cas", "touch", "incr", "decr"}
        assert words_of_the_parser() - refused - commands == set()

    def test_show_each_option(self):
        keys = "/".join(word for words in SENT for word in words[1:])
        options = {text for row in table("Fetching") for text in row} | {"sync", "delay=", "id="}
        assert [option for option in options if f"/{option.partition('<')[0]}" not in keys] == []

    def test_get_the_error_that_the_table_has(self, server):
        asked = [(error, example) for error, found in FIXED_ERRORS.items() for example in found]
        asked = [(error, example) for error, example in asked if not example.startswith(("/", "max_"))]
        assert len(asked) > 20
        for error, example in asked:
            with contextlib.closing(server.connect()) as wire:
                if "close current item first" in error:
                    wire.set(b"work", b"x")
                    wire.get(b"work/open")
                block = "\r\n" if example.startswith(("set ", "ms ")) else ""
                assert wire.ask(f"{example}\r\n{block}".encode()).decode() == f"{error}\r\n", example
