"""Users, passwords and permissions: no server, no socket."""

import statistics
import subprocess
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import run_darner

from darner._proto import Parser, Verb
from darner._records import CHUNK_BYTES
from darner.access import auth_file
from darner.access.guard import ADMIN, DENIED, MANAGE, OPEN_TO_ALL, READ, WRITE, Guard, denied_verbs
from darner.access.passwords import HASH_BYTES, hash_password, is_password
from darner.config.kinds import COMMANDS
from darner.errors import ConfigError


def requests(data: bytes) -> list:
    parser = Parser()
    parser.feed(data)
    return list(parser)


def refusal(data: bytes, **permissions) -> bytes | None:
    """What a user with these permissions is told about a request; None if it is served."""
    guard = Guard("alice", auth_file.User(password="", **permissions))
    said = [guard.refusal(request) for request in requests(data)]
    assert said
    # only the end of a large item says anything
    assert not any(said[:-1])
    return said[-1]


def is_right(user: auth_file.User | None, password: bytes) -> bool:
    return is_password(password, None if user is None else user.password)


class TestPassword:
    def test_right_one_is_right_and_every_other_wrong(self):
        user = auth_file.User(password=hash_password(b"secret"))
        assert is_right(user, b"secret")
        for wrong in (b"", b"secre", b"secret ", b"Secret"):
            assert not is_right(user, wrong)

    def test_same_one_is_hashed_differently_each_time(self):
        assert hash_password(b"x") != hash_password(b"x")

    def test_of_nobody_is_never_right(self):
        assert not is_right(None, b"")
        assert not is_right(None, bytes(HASH_BYTES))

    def test_of_nobody_takes_as_long_as_a_known_users(self):
        def seconds(user: auth_file.User | None) -> float:
            start = time.thread_time()
            is_right(user, b"wrong")
            return time.thread_time() - start

        user = auth_file.User(password=hash_password(b"secret"))
        known, unknown = (statistics.median(seconds(who) for _ in range(7)) for who in (user, None))
        assert known / 2 < unknown < known * 2


class TestPermission:
    @pytest.mark.parametrize(
        ("data", "key"),
        [
            (b"get work\r\n", "read"),
            (b"gets work/close/open/t=5\r\n", "read"),
            (b"get work/abort\r\n", "read"),
            (b"set work 0 0 1\r\nx\r\n", "write"),
            (b"set work/sync 0 0 1 noreply\r\nx\r\n", "write"),
            (b"set work 0 0 %d\r\n%s\r\n" % (CHUNK_BYTES * 2 + 1, bytes(CHUNK_BYTES * 2 + 1)), "write"),
            (b"delete work\r\n", "manage"),
            (b"flush work\r\n", "manage"),
            (b"configure work max_items=1 dead_letter_queue=none\r\n", "manage"),
        ],
    )
    def test_is_needed_for_what_a_request_does_and_no_other_will_do(self, data, key):
        needed = {"read": READ, "write": WRITE, "manage": MANAGE}[key]
        others = {other: ("*",) for other in ("read", "write", "manage") if other != key}
        assert refusal(data, **others) == needed
        assert refusal(data, **{key: ("mail", "work")}) is None
        assert refusal(data, **{key: ("wor", "ork", "work.*", "WORK")}) == needed
        assert refusal(data, admin=True) is None

    def test_is_needed_for_every_queue_of_a_get(self):
        assert refusal(b"get a b\r\n", read=("a", "b")) is None
        assert refusal(b"get a b\r\n", read=("a",)) == READ
        assert refusal(b"get b a\r\n", read=("a",)) == READ

    def test_to_configure_takes_that_to_write_where_items_are_to_be_moved(self):
        for setting in (b"dead_letter_queue", b"expire_to_queue"):
            data = b"configure work max_items=1 %s=mail\r\n" % setting
            assert refusal(data, manage=("*",)) == WRITE
            assert refusal(data, manage=("*",), write=("work",)) == WRITE
            assert refusal(data, manage=("*",), write=("mail",)) is None

    def test_to_configure_a_child_takes_one_for_its_parent(self):
        data = b"configure mail+work\r\n"
        assert refusal(data, manage=("mail+*",)) == MANAGE
        for key in ("read", "write", "manage"):
            assert refusal(data, **{"manage": ("mail+*",), key: ("mail+*", "mail")}) is None

    @pytest.mark.parametrize("data", [b"flush_all\r\n", b"stats reset\r\n", b"verbosity 1\r\n"])
    def test_for_the_whole_server_takes_an_admin(self, data):
        assert refusal(data, read=("*",), write=("*",), manage=("*",)) == ADMIN
        assert refusal(data, admin=True) is None

    @pytest.mark.parametrize(
        "data", [b"version\r\n", b"stats\r\n", b"quit\r\n", b"nonsense\r\n", b"add a\r\n"]
    )
    def test_is_not_needed_for_what_touches_nothing(self, data):
        assert refusal(data) is None

    def test_of_an_item_refused_does_not_touch_the_next(self):
        guard = Guard("alice", auth_file.User(password="", write=("mine",)))
        large = b"set %s 0 0 %d\r\n" + bytes(CHUNK_BYTES * 2) + b"\r\n"
        said = [
            guard.refusal(request)
            for queue in (b"yours", b"mine", b"yours")
            for request in requests(large % (queue, CHUNK_BYTES * 2))
        ]
        assert said == [b"", b"", b"", WRITE, None, None, None, None, b"", b"", b"", WRITE]

    @pytest.mark.parametrize(
        ("glob", "matches", "others"),
        [
            ("*", [b"a", b"\xff\xfe", b"a.b", b"a+b"], []),
            ("mail.*", [b"mail.", b"mail.in"], [b"mail", b"xmail.in"]),
            ("*.in", [b".in", b"mail.in"], [b"mail.in2"]),
            ("a[b]?.c", [b"a[b]?.c"], [b"ab1.c", b"a[b]?xc"]),
            ("für*", ["für1".encode()], [b"fur1"]),
        ],
    )
    def test_globs_know_the_star_alone(self, glob, matches, others):
        for queue in matches:
            assert refusal(b"get %s\r\n" % queue, read=(glob,)) is None
        for queue in others:
            assert refusal(b"get %s\r\n" % queue, read=(glob,)) == READ

    @given(st.lists(st.text("ab*.", max_size=6), max_size=3), st.text("ab.", min_size=1, max_size=6))
    def test_globs_match_as_the_slow_obvious_way_says(self, globs, queue):
        def match(glob: str, text: str) -> bool:
            if not glob:
                return not text
            if glob[0] == "*":
                return any(match(glob[1:], text[at:]) for at in range(len(text) + 1))
            return text[:1] == glob[0] and match(glob[1:], text[1:])

        allowed = refusal(b"get %s\r\n" % queue.encode(), read=tuple(globs)) is None
        assert allowed is any(match(glob, queue) for glob in globs)


class TestChild:
    """`secret+eve` gets what is set on `secret`."""

    REQUESTS = (
        b"get secret+eve\r\n", b"gets secret+eve/t=5/open\r\n", b"get secret+eve/peek\r\n",
        b"get mail secret+eve\r\n", b"get secret+eve/cursor=x\r\n", b"get secret+a+eve\r\n",
        b"monitor secret+eve 5\r\n", b"confirm secret+eve 1\r\n",
    )  # fmt: skip

    @pytest.mark.parametrize("data", REQUESTS)
    def test_is_read_by_those_alone_who_may_read_its_parent(self, data):
        for read in (("*eve*", "mail"), ("secret+*", "mail"), ("secret+eve*", "secret+a+eve", "mail")):
            assert refusal(data, read=read, write=("*",), manage=("*",)) == READ
            assert refusal(data, read=(*read, "secret")) is None

    def test_is_no_child_without_a_parent(self):
        assert refusal(b"get +eve\r\n", read=("*eve",)) is None

    @pytest.mark.parametrize("size", [1, CHUNK_BYTES * 2 + 1])
    def test_is_set_to_by_those_alone_who_have_some_right_to_its_parent(self, size):
        data = b"set secret+eve 0 0 %d\r\n%s\r\n" % (size, bytes(size))
        assert refusal(data, write=("*eve*",), read=("*eve*",), manage=("*",)) == WRITE
        assert refusal(data, write=("*eve*", "secret")) is None
        assert refusal(data, write=("*eve*",), read=("secret",)) is None

    def test_that_nobody_can_read_is_warned_of(self, tmp_path, monkeypatch):
        path = tmp_path / "users.toml"
        path.write_text(
            f'[alice]\npassword = "{hash_password(b"x")}"\nread = ["a+b", "c+*", "d", "d+e", "*+f"]\n'
        )
        path.chmod(0o600)
        said = []
        monkeypatch.setattr(auth_file.log, "warning", lambda event, **what: said.append((event, what)))
        auth_file.load(path)
        ((event, what),) = said
        assert "parent" in event
        assert (what["user"], what["queue"]) == ("alice", "a+b c+*")


class TestDeny:
    EVERYTHING = auth_file.User(password="", read=("*",), write=("*",), manage=("*",))
    REQUESTS = {  # noqa: RUF012
        "get": b"get a\r\n", "gets": b"gets a\r\n", "set": b"set a 0 0 1\r\nx\r\n",
        "delete": b"delete a\r\n", "flush": b"flush a\r\n", "flush_all": b"flush_all\r\n",
        "configure": b"configure a\r\n", "monitor": b"monitor a 1\r\n", "stats": b"stats\r\n",
        "version": b"version\r\n",
    }  # fmt: skip

    @pytest.mark.parametrize(("word", "data"), REQUESTS.items())
    def test_refuses_a_command_to_whoever_is_no_admin(self, word, data):
        denied = denied_verbs([word])
        admin = auth_file.User(password="", admin=True)
        (request,) = requests(data)
        for user, said in ((None, DENIED), (self.EVERYTHING, DENIED), (admin, None)):
            assert Guard("alice", user, denied).refusal(request) == said

    @pytest.mark.parametrize(("word", "data"), REQUESTS.items())
    def test_refuses_no_other(self, word, data):
        denied = denied_verbs({*COMMANDS} - {word})
        (request,) = requests(data)
        assert Guard("", None, denied).refusal(request) is None

    def test_of_set_refuses_large_items_too_with_one_answer_each(self):
        guard = Guard("", None, denied_verbs(["set"]))
        large = b"set a 0 0 %d\r\n%s\r\n" % (CHUNK_BYTES * 2, bytes(CHUNK_BYTES * 2))
        said = [guard.refusal(request) for request in requests(large + b"get a\r\n")]
        assert said == [b"", b"", b"", DENIED, None]

    def test_knows_every_command_there_is(self):
        # what does nothing but say what came
        harmless = OPEN_TO_ALL - {Verb.VERSION, Verb.QUIT}
        assert denied_verbs(COMMANDS) == {*Verb} - harmless


class TestStatus:
    def test_may_be_asked_by_whoever_may_read_anything(self):
        assert refusal(b"status\r\n", read=("work",)) is None
        assert refusal(b"status\r\n", write=("*",), manage=("*",)) == ADMIN
        assert refusal(b"status up\r\n", read=("*",), write=("*",), manage=("*",)) == ADMIN


def passwd(*arguments: str, password: str = "secret\n") -> subprocess.CompletedProcess:
    return run_darner("passwd", *arguments, input=password)


class TestPasswd:
    def test_makes_a_file_for_its_owner_alone_that_lets_the_user_in(self, tmp_path):
        path = tmp_path / "users.toml"
        done = passwd(str(path), "alice")
        assert (done.returncode, done.stderr) == (0, "")
        assert "alice is new" in done.stdout
        assert path.stat().st_mode & 0o777 == 0o600
        assert "secret" not in path.read_text()
        (user,) = auth_file.load(path).values()
        assert is_right(user, b"secret")
        assert (user.read, user.write, user.manage, user.admin) == (("*",), ("*",), ("*",), False)

    def test_changes_the_password_and_nothing_else(self, tmp_path):
        path = tmp_path / "users.toml"
        passwd(str(path), "alice")
        text = path.read_text().replace('read = ["*"]', 'read = ["mail.*"]  # hers')
        path.write_text("# mine\n" + text)
        path.chmod(0o644)
        passwd(str(path), "bob.b@example", password="other\r\n")
        done = passwd(str(path), "alice", password="new one")
        assert (done.returncode, done.stdout) == (0, "")
        assert path.stat().st_mode & 0o777 == 0o600
        assert "# mine" in path.read_text()
        assert 'read = ["mail.*"]  # hers' in path.read_text()
        users = auth_file.load(path)
        assert is_right(users["alice"], b"new one")
        assert not is_right(users["alice"], b"secret")
        assert is_right(users["bob.b@example"], b"other")
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize("name", ["", "a b", "a\n", "x" * 65, "ä", "a/b"])
    def test_refuses_a_name_that_is_no_word(self, tmp_path, name):
        done = passwd(str(tmp_path / "users.toml"), name)
        assert done.returncode == 1
        assert "user name" in done.stderr
        assert not (tmp_path / "users.toml").exists()

    @pytest.mark.parametrize(
        ("text", "says"), [("x = ", "auth_file"), ("alice = 5\n", "auth_file"), ("\xff", "auth_file")]
    )
    def test_leaves_a_file_alone_that_is_no_auth_file(self, tmp_path, text, says):
        path = tmp_path / "users.toml"
        path.write_text(text, encoding="latin-1")
        done = passwd(str(path), "alice")
        assert done.returncode == 1
        assert says in done.stderr
        assert "Traceback" not in done.stderr
        assert path.read_text(encoding="latin-1") == text

    def test_says_in_one_line_what_does_not_work(self, tmp_path):
        for path, password in [
            (tmp_path / "none" / "users.toml", "x"),
            (tmp_path, "x"),
            (tmp_path / "u", "\n"),
        ]:
            done = passwd(str(path), "alice", password=password)
            assert done.returncode == 1
            assert done.stderr.count("\n") == 1
            assert "Traceback" not in done.stderr


class TestFile:
    GOOD = f'password = "{hash_password(b"x")}"\n'

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("[alice", "TOML"),
            ("alice = 5\n", "alice"),
            ("[alice]\n", "password"),
            ('[alice]\npassword = "secret"\n', "no hash"),
            (f"[alice]\n{GOOD}reads = []\n", "reads"),
            (f'[alice]\n{GOOD}read = "x"\n', "read"),
            (f"[alice]\n{GOOD}admin = 1\n", "admin"),
            (f'["a b"]\n{GOOD}', "a b"),
            ('[alice]\npassword = "$scrypt$ln=30,r=8,p=1$YWJj$YWJj"\n', "cost"),
            ('[alice]\npassword = "$scrypt$ln=14,r=0,p=1$YWJj$YWJj"\n', "cost"),
            ('[alice]\npassword = "$scrypt$ln=14,r=8,p=1$YWJjx$YWJj"\n', "damaged"),
        ],
    )
    def test_that_is_wrong_is_refused_with_what_and_where(self, tmp_path, text, says):
        path = tmp_path / "users.toml"
        path.write_text(text)
        with pytest.raises(ConfigError) as refused:
            auth_file.load(path)
        assert str(path) in str(refused.value)
        assert says in str(refused.value)
        assert "\n" not in str(refused.value)
        assert "secret" not in str(refused.value)

    def test_that_is_not_there_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match=r"none\.toml"):
            auth_file.load(tmp_path / "none.toml")
