"""The settings: the values of a file, its errors, and that docs/darner.toml is right."""

import re
import subprocess
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from running import run_darner, running

from darner import _proto
from darner.config import kinds
from darner.config.config_file import load, parse
from darner.config.settings import QueueSettings, Settings, needs_restart
from darner.errors import ConfigError

ROOT = Path(__file__).parents[2]
EXAMPLE = (ROOT / "docs" / "darner.toml").read_text()
PAGE = (ROOT / "docs" / "configuration.md").read_text()
OF_QUEUE = {field.encode_name for field in msgspec.structs.fields(QueueSettings)}
TABLES = {"queue_defaults", "queues", "aliases"}
OF_SERVER = {field.encode_name for field in msgspec.structs.fields(Settings)} - TABLES - {"patterns"}


def settings(text: str, **overrides) -> Settings:
    return parse(text, overrides, "darner.toml")


def error(text: str, **overrides) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, overrides, "darner.toml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def queue(text: str, name: bytes) -> dict:
    """Return the settings of a queue that are not the defaults."""
    defaults = msgspec.structs.asdict(QueueSettings())
    found = msgspec.structs.asdict(settings(text).queue(name))
    return {field: value for field, value in found.items() if value != defaults[field]}


class TestValues:
    def test_of_an_empty_file_are_the_defaults(self):
        assert settings("") == Settings()
        assert Settings().queue(b"any") == QueueSettings()

    def test_of_the_command_line_come_before_the_file(self):
        found = settings('port = 1\nhost = "::1"\n', port=2)
        assert (found.port, found.host) == (2, ("::1",))

    def test_of_a_queue_are_those_of_the_contract(self):
        assert " ".join(sorted(OF_QUEUE)) == (
            "dead_letter_queue dedup_window discard_old_when_full durable expire_to_queue "
            "fanout_only max_age max_attempts max_bytes max_expire_sweep max_item_size max_items "
            "max_open_reads max_queue_age open_timeout sync"
        )

    @pytest.mark.parametrize(
        ("written", "size"),
        [
            ("1", 1), ('"1B"', 1), ('"2 kB"', 2000), ('"16 MiB"', 16 << 20), ('"16MiB"', 16 << 20),
            ('"3 GB"', 3 * 10**9), ('"3 GiB"', 3 << 30), ('"1 TiB"', 1 << 40), ('"none"', None),
        ],
    )  # fmt: skip
    def test_sizes(self, written, size):
        assert settings(f"[queue_defaults]\nmax_bytes = {written}").queue_defaults.max_bytes == size

    @pytest.mark.parametrize(
        "written", ["0", "1.5", "true", '"1.5 MiB"', '"16 mb"', '"16"', '" 1 B"', '"-1 B"', "[]"]
    )
    def test_what_is_no_size(self, written):
        assert "16 MiB" in error(f"[queue_defaults]\nmax_bytes = {written}")

    @pytest.mark.parametrize(
        ("written", "ms"),
        [
            ("250", 250), ('"250 ms"', 250), ('"30s"', 30_000), ('"5m"', 300_000), ('"2h"', 7_200_000),
            ('"7d"', 604_800_000), ('"none"', None),
        ],
    )  # fmt: skip
    def test_times_are_milliseconds(self, written, ms):
        found = settings(f"idle_timeout = {written}\n[queue_defaults]\nmax_age = {written}")
        assert found.idle_timeout_ms == found.queue_defaults.max_age_ms == ms

    @pytest.mark.parametrize("written", ["0", "1.5", '"5 min"', '"5M"', '"1h30m"', '"36526d"', "07:30:00"])
    def test_what_is_no_time(self, written):
        assert "5m" in error(f"[queue_defaults]\nmax_age = {written}")

    @pytest.mark.parametrize(
        ("written", "seconds"), [("1", 1), ('"60s"', 60), ('"2m"', 120), ("32767", 32767)]
    )
    def test_keepalive_is_seconds(self, written, seconds):
        assert settings(f"keepalive = {written}").keepalive == seconds

    @pytest.mark.parametrize("written", ["0", "32768", '"500ms"', '"10h"', '"none"'])
    def test_what_is_no_keepalive(self, written):
        assert "32767" in error(f"keepalive = {written}")

    @pytest.mark.parametrize(
        ("written", "ms"), [("never", None), ("always", 0), ("100ms", 100), ("1s", 1000)]
    )
    def test_sync_is_never_or_always_or_an_interval(self, written, ms):
        assert settings(f'[queue_defaults]\nsync = "{written}"').queue_defaults.sync_ms == ms

    def test_aliases_are_names_of_queues(self):
        assert settings('[aliases]\nall = ["a", "ö"]').aliases == {b"all": (b"a", "ö".encode())}

    @given(st.binary(max_size=4) | st.binary(min_size=249, max_size=252))
    @example(b"")
    @example(b"x" * 250)
    @example(b"x" * 251)
    def test_names_are_what_the_protocol_takes(self, name):
        assert bool(kinds.NAME.fullmatch(name)) == _proto.valid_name(name)


class TestQueue:
    def test_has_the_defaults_then_its_own_table(self):
        text = "[queue_defaults]\nmax_items = 1\nmax_bytes = 1\n[queues.q]\nmax_items = 2\n"
        assert queue(text, b"q") == {"max_items": 2, "max_bytes": 1}
        assert queue(text, b"other") == {"max_items": 1, "max_bytes": 1}

    def test_can_lift_what_the_defaults_limit(self):
        text = '[queue_defaults]\nmax_items = 1\nexpire_to_queue = "x"\nsync = "1s"\n[queues."q"]\n'
        assert queue(text + 'max_items = "none"\nexpire_to_queue = "none"\nsync = "never"', b"q") == {}

    @pytest.mark.parametrize("order", [1, -1])
    def test_has_the_more_specific_table_before_others_whatever_their_order(self, order):
        tables = [
            '[queues."*"]\nmax_items = 1\nmax_bytes = 1\nmax_attempts = 1\nmax_open_reads = 2\n',
            '[queues."log.*"]\nmax_items = 2\nmax_bytes = 2\nmax_attempts = 2\n',
            '[queues."log.*.de"]\nmax_items = 3\nmax_bytes = 3\n',
            '[queues."log.web.de"]\nmax_items = 4\n',
        ]
        text = "".join(tables[::order])
        assert queue(text, b"log.web.de") == {
            "max_items": 4, "max_bytes": 3, "max_attempts": 2, "max_open_reads": 2,
        }  # fmt: skip
        assert queue(text, b"log.") == {
            "max_items": 2, "max_bytes": 2, "max_attempts": 2, "max_open_reads": 2,
        }  # fmt: skip

    def test_has_the_later_of_two_tables_that_are_as_specific(self):
        assert queue('[queues."a*"]\nmax_items = 1\n[queues."*b"]\nmax_items = 2\n', b"ab") == {
            "max_items": 2
        }
        assert queue('[queues."*b"]\nmax_items = 2\n[queues."a*"]\nmax_items = 1\n', b"ab") == {
            "max_items": 1
        }

    @pytest.mark.parametrize(
        ("pattern", "name", "matches"),
        [
            ("a*", b"a", True), ("a*", b"ba", False), ("*a", b"ba", True), ("a*c*e", b"abcde", True),
            ("a*c*e", b"ace", True), ("a*c*e", b"aec", False), ("*b*", b"abc", True), ("**", b"x", True),
            ("a*", b"a\xff\xfe", True), ("ö*", "öl".encode(), True),
            ("a?*", b"ab", False), ("a?*", b"a?", True),
            ("[ab]*", b"a", False), ("[ab]*", b"[ab]c", True), ("a.*", b"abc", False), ("A*", b"ab", False),
        ],
    )  # fmt: skip
    def test_name_is_matched_by_bytes_and_a_star_is_any_run(self, pattern, name, matches):
        assert bool(queue(f'[queues."{pattern}"]\nmax_items = 1', name)) is matches

    def test_name_is_matched_fast_whatever_the_pattern(self):
        assert queue(f'[queues."{"*a" * 60}*b"]\nmax_items = 1', b"a" * 250) == {}

    def test_that_is_a_child_has_what_its_parent_has_and_its_own(self):
        text = '[queues.p]\nmax_items = 1\nmax_bytes = 1\n[queues."p+c"]\nmax_items = 2\n'
        assert queue(text, b"p+c") == {"max_items": 2, "max_bytes": 1}
        assert queue(text, b"p+d") == {"max_items": 1, "max_bytes": 1}
        assert queue(text, b"+c") == queue(text, b"x+c") == {}

    def test_that_is_a_child_has_its_parents_table_before_a_pattern_that_is_for_both(self):
        text = '[queues."p"]\nmax_items = 1\n[queues."p*"]\nmax_items = 2\n[queues."*+slow"]\nmax_items = 3\n'
        assert queue(text, b"p+c") == {"max_items": 1}
        assert queue(text, b"p+slow") == {"max_items": 3}

    @pytest.mark.parametrize("table", ["queue_defaults", "queues.p", 'queues."*"'])
    def test_that_is_a_child_does_not_inherit_fanout_only(self, table):
        text = f"[{table}]\nfanout_only = true\n"
        assert queue(text, b"p") == {"fanout_only": True}
        assert queue(text, b"p+c") == {}

    @pytest.mark.parametrize("field", ["expire_to_queue", "dead_letter_queue"])
    @pytest.mark.parametrize("table", ["queue_defaults", 'queues."*"'])
    def test_does_not_inherit_to_move_items_to_itself(self, table, field):
        text = f'[{table}]\n{field} = "dead"\n'
        assert queue(text, b"q") == {field: "dead"}
        assert queue(text, b"dead") == {}


class TestError:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("prot = 1", ":1: prot is no setting; did you mean port"),
            ("\n\nmaxConnections = 1", ":3: maxConnections is no setting; did you mean max_con"),
            ("xyzzy = 1", ":1: xyzzy is no setting; there are host port data"),
            ('"a\\nb" = 1', r':1: "a\nb" is no setting'),
            ("[queue]\nmax_items = 1", ":1: queue is no setting; did you mean queues"),
            ("max_items = 1", ":1: max_items is set for queues: it belongs into [queue_defaults]"),
            ("[queue_defaults]\nport = 1", ":2: queue_defaults.port is set for the server"),
            ("[queues.a.b]\nmax_items = 1", ':1: queues."a".b is no setting; the name of a queue'),
            ("port = true", ":1: port is true, and must be a whole number from 0 to 65535"),
            ('dialect = "klingon"', 'dialect is "klingon", and must be "memcached" or "kestrel"'),
            ("debug = 1", "debug is 1, and must be true or false"),
            ('data = ""', 'data is "", and must be text in quotes'),
            ("queues = 5", ":1: queues is 5, and must be a table: [queues]"),
            ("[queues]\norders = 5", ':2: queues."orders" is 5, and must be a table: [queues."orders"]'),
            (
                '[queues."orders"]\nmax_age = "5m"\nmax_items = "many"\nsync = 7',
                ':3: queues."orders".max_items is "many", and must be a whole number from 1, or "none"',
            ),
            ('[queue_defaults]\nsync = "often"', 'or "always", or "never"'),
            ("[queue_defaults]\nmax_attempts = 65536", "from 1 to 65535"),
            ('[queues."a b"]\n', ':1: queues."a b" is no name of a queue: that has 1 to 250 bytes'),
            ('[queue_defaults]\nexpire_to_queue = "a/b"', "must be the name of a queue"),
            ('[queues."q"]\nexpire_to_queue = "q"', ':2: queues."q".expire_to_queue names the queue itself'),
            ('[queues."q"]\ndead_letter_queue = "q"', 'queues."q".dead_letter_queue names the queue itself'),
            (
                '[queue_defaults]\nexpire_to_queue = "all"\n[aliases]\nall = ["a"]',
                ':2: queue_defaults.expire_to_queue is "all", which is an alias',
            ),
            ('[queues."p+c"]\nfanout_only = true', ':2: queues."p+c".fanout_only is true'),
            ('[aliases]\nall = ["a", "all"]', ':2: aliases."all" names itself'),
            ('[aliases]\nx = ["all"]\nall = ["a"]', ':2: aliases."x" names "all", which is an alias too'),
            ('[aliases]\nall = ["a"]\n[queues.all]\n', ':3: queues."all" is an alias'),
            ("[aliases]\nall = []", 'aliases."all" is [], and must be a list of different queues'),
            ('[aliases]\nall = ["a", "a"]', 'aliases."all" is ["a", "a"], and must be a list of diff'),
            ('[aliases]\nall = "a"', 'aliases."all" is "a", and must be a list of different queues'),
            ('[aliases]\nall = ["a", ["b"]]', "must be a list of different queues"),
            ('[aliases]\n"a/b" = ["a"]', ':2: aliases."a/b" is no name of a queue'),
            ('tls_cert = "c"', ":1: tls_cert is of no use without tls_key"),
            ('tls_key = "k"', "tls_key is of no use without tls_cert"),
            ('tls_ca = "a"', "tls_ca is of no use without tls_cert"),
            ("port = 1\nport =", "darner.toml is not TOML: Invalid value (at "),
            (f"port = {'9' * 5000}", "darner.toml is not TOML"),
            ("port = 1\nport = 2", "darner.toml is not TOML: Cannot overwrite a value"),
        ],
    )  # fmt: skip
    def test_names_the_line_the_key_what_was_found_and_what_may_be(self, text, says):
        assert says in error(text)

    def test_of_the_command_line_says_so(self):
        assert error("", port=65536) == (
            "command line: port is 65536, and must be a whole number from 0 to 65535"
        )

    def test_is_not_hidden_by_the_command_line(self):
        assert "darner.toml:1: port" in error("port = -1", port=1)

    def test_shows_no_more_of_a_long_value_than_fits_a_line(self):
        assert len(error(f'[queue_defaults]\nmax_items = "{"x" * 5000}"')) < 300

    @pytest.mark.parametrize(
        "before", ["", "\n# a comment\n", '[queues.a]\nmax_items = 1\n["queues".b]\nmax_age = """\n5m"""\n']
    )
    @pytest.mark.parametrize(
        ("table", "line"),
        [
            ("[aliases]\nx = [\n  'a',\n\n  'x',\n]\n", 2),
            ('["aliases"]\n"x"=["x"]', 2),
            ("aliases.x = ['x']", 1),
            ("aliases = { y = ['a'], x = ['x'] }", 1),
        ],
    )
    @pytest.mark.parametrize("after", ["", "\n" * 50 + "[queues.z]\nmax_items = 9\n"])
    def test_finds_the_line_however_it_is_written(self, before, table, line, after):
        text = before + table + after if table.startswith("[") else table + "\n" + before + after
        line += before.count("\n") if table.startswith("[") else 0
        assert error(text).startswith(f'darner.toml:{line}: aliases."x" names itself')

    def test_finds_the_line_of_a_large_file_soon(self):
        tables = [f'[queues."q{n}"]\nmax_items = {n + 1}\nmax_age = "5m"' for n in range(1000)]
        text = "\n".join([*tables[:700], '[queues."bad"]\nmax_items = 0', *tables[700:]])
        assert error(text).startswith('darner.toml:2102: queues."bad".max_items is 0')


class TestFile:
    def test_is_utf8_with_either_line_end(self, tmp_path):
        path = tmp_path / "darner.toml"
        path.write_bytes('[queues."ö"]\r\nmax_items = 1\r\n'.encode())
        assert load(path, {}).queue("ö".encode()).max_items == 1
        path.write_bytes(b"port = 1\r\n\r\nprot = 1\r\n")
        with pytest.raises(ConfigError, match=re.escape(f"{path}:3: prot ")):
            load(path, {})
        path.write_bytes(b'host = "\xff"')
        with pytest.raises(ConfigError, match=re.escape(f"{path} is not TOML, which is UTF-8: ")):
            load(path, {})

    def test_that_cannot_be_read_is_an_error(self, tmp_path):
        with pytest.raises(ConfigError, match=f"{tmp_path}/none: No such file or directory"):
            load(tmp_path / "none", {})

    def test_read_again_leaves_what_was_read_before_alone(self, tmp_path):
        path = tmp_path / "darner.toml"
        path.write_text("[queues.q]\nmax_items = 1")
        before = load(path, {})
        path.write_text("[queues.q]\nmax_items = 2")
        assert load(path, {}).queue(b"q").max_items == 2
        path.write_text("[queues.q]\nmax_items = 0")
        with pytest.raises(ConfigError):
            load(path, {})
        assert before.queue(b"q").max_items == 1


class TestRestart:
    def test_is_needed_for_what_is_set_for_the_server_and_names_it(self):
        old = settings("port = 1\nkeepalive = 5\n")
        new = settings('port = 1\nkeepalive = "6s"\nidle_timeout = 1\ndata = "x"\n')
        assert needs_restart(old, new) == ["data", "keepalive", "idle_timeout"]

    def test_is_not_needed_for_what_is_set_for_queues(self):
        text = '[queue_defaults]\nmax_items = 1\n[queues.q]\nsync = "1s"\n[queues."q*"]\n[aliases]\nx = ["y"]'
        assert needs_restart(settings(""), settings(text)) == []


class TestExample:
    FULL = re.sub(r"^#(?=[^ \n])", "", EXAMPLE, flags=re.MULTILINE)

    def test_changes_nothing_as_it_stands(self):
        assert settings(EXAMPLE) == Settings()

    def test_mentions_every_setting_and_no_other(self):
        found = tomllib.loads(self.FULL)
        assert found.keys() == OF_SERVER | TABLES
        assert found["queue_defaults"].keys() == OF_QUEUE

    def test_shows_each_default(self):
        found = settings(self.FULL)
        assert found.queue_defaults == QueueSettings()
        assert msgspec.structs.replace(found, queues={}, patterns=(), aliases={}) == Settings()

    def test_has_an_example_of_each_table(self):
        found = settings(self.FULL)
        assert found.queues
        assert found.patterns
        assert found.aliases


class TestReadme:
    FILE = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)[1]

    def test_lists_every_setting_and_no_other(self):
        assert set(re.search(r"^\| the server \| `(.+)` \|$", PAGE, re.MULTILINE)[1].split()) == OF_SERVER
        assert set(re.search(r"^\| a queue \| `(.+)` \|$", PAGE, re.MULTILINE)[1].split()) == OF_QUEUE

    def test_shows_an_error_as_it_is(self):
        assert settings(self.FILE).queue(b"session.1").max_age_ms == 30 * 60_000
        wrong = self.FILE.replace('sync = "always"', 'max_items = "many"')
        assert f"darner: {error(wrong)}\n" in PAGE


def check(path: Path, *options: str) -> subprocess.CompletedProcess:
    return run_darner("--check-config", "--config", path, *options, directory=path.parent)


class TestConsoleScript:
    def test_says_that_the_file_is_fine_and_serves_nothing(self, tmp_path):
        path = tmp_path / "darner.toml"
        path.write_text('port = 5\n[queues.q]\n[queues."q*"]\n[aliases]\nx = ["y"]')
        done = check(path, "--host", "127.0.0.9")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == (
            f"{path} is fine: listens on 127.0.0.9 port 5, data in data, tables for queues: 2, aliases: 1\n"
        )
        assert list(tmp_path.iterdir()) == [path]

    def test_says_what_is_wrong_with_the_file(self, tmp_path):
        path = tmp_path / "darner.toml"
        path.write_text("[queues.q]\nmax_items = -1")
        done = check(path)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            f'darner: {path}:2: queues."q".max_items is -1, and must be a whole number from 1, or "none"\n'
        )

    def test_wants_a_file_to_check(self):
        done = run_darner("--check-config")
        assert done.returncode == 2
        assert "--check-config needs --config" in done.stderr

    def test_serves_with_the_example(self, tmp_path):
        path = tmp_path / "darner.toml"
        path.write_text(EXAMPLE)
        with running(tmp_path / "data", "--config", str(path)) as server:
            assert server.connect().set(b"q", b"x") == b"STORED\r\n"
