"""Whose password is checked next: no server, no socket, no scrypt."""

from collections import Counter
from collections.abc import Callable

import pytest

from darner.access import password_queue
from darner.access.auth_file import User
from darner.access.password_queue import CHECKS, MAX_WAITING, PasswordChecks

ALICE, BOB = User(password="alice's"), User(password="bob's")
RIGHT = {("alice's", b"right"), ("bob's", b"right")}


class Bench:
    """Passwords whose checks are done when the test says so."""

    def __init__(self, monkeypatch) -> None:
        self.works: list[tuple[Callable, Callable]] = []
        self.checked: list[tuple[str | None, bytes]] = []
        self.told: dict[object, bool | None] = {}
        self.checks = PasswordChecks(lambda *work: self.works.append(work))
        monkeypatch.setattr(password_queue, "is_password", self._is_password)

    def _is_password(self, password: bytes, hashed: str | None) -> bool:
        self.checked.append((hashed, password))
        if password == b"no memory":
            raise MemoryError
        return (hashed, password) in RIGHT

    def ask(self, who: object, address: str, user: User | None, password: bytes) -> Callable[[], None]:
        def done(is_right: bool | None) -> None:
            assert who not in self.told
            self.told[who] = is_right

        return self.checks.check(address, user, password, done)

    def do_one(self) -> None:
        work, done = self.works.pop(0)
        try:
            work()
        except Exception as error:
            done(error)
        else:
            done(None)

    def do_all(self) -> None:
        while self.works:
            assert len(self.works) <= CHECKS
            self.do_one()

    def flood(self, count: int, address: str = "192.0.2.1", user: User | None = ALICE) -> None:
        for number in range(count):
            self.ask((address, number), address, user, b"wrong %d" % number)


@pytest.fixture
def bench(monkeypatch) -> Bench:
    return Bench(monkeypatch)


class TestPassword:
    def test_is_told_what_it_is(self, bench):
        bench.ask("right", "a", ALICE, b"right")
        bench.ask("wrong", "a", ALICE, b"left")
        bench.ask("nobody's", "a", None, b"right")
        bench.do_all()
        assert bench.told == {"right": True, "wrong": False, "nobody's": False}

    def test_that_was_right_is_so_at_once_whoever_waits(self, bench):
        bench.ask("first", "a", ALICE, b"right")
        bench.do_all()
        bench.flood(MAX_WAITING * 2)
        bench.ask("again", "192.0.2.1", ALICE, b"right")
        assert bench.told["again"] is True
        assert len(bench.checked) == 1
        assert "b'right'" not in repr(vars(bench.checks)["_right"])

    def test_that_was_right_is_checked_again_once_the_users_have_changed(self, bench):
        bench.ask("first", "a", ALICE, b"right")
        bench.do_all()
        bench.checks.forget()
        bench.ask("again", "a", ALICE, b"right")
        assert "again" not in bench.told
        bench.do_all()
        assert bench.checked == [("alice's", b"right")] * 2

    def test_that_was_right_makes_no_other_right(self, bench):
        bench.ask("first", "a", ALICE, b"right")
        bench.do_all()
        bench.ask("wrong", "a", ALICE, b"left")
        bench.ask("nobody's", "a", None, b"right")
        bench.do_all()
        assert (bench.told["wrong"], bench.told["nobody's"]) == (False, False)

    def test_that_is_sent_many_times_is_checked_once(self, bench):
        for number in range(1000):
            bench.ask(number, "a", ALICE, b"wrong")
        bench.do_all()
        assert len(bench.checked) <= 1 + CHECKS
        assert Counter(bench.told.values()) == {False: 1000}

    def test_that_cannot_be_checked_is_not_called_wrong(self, bench):
        bench.ask("first", "a", ALICE, b"no memory")
        bench.ask("next", "a", ALICE, b"right")
        bench.do_all()
        assert bench.told == {"first": None, "next": True}

    def test_of_a_client_that_has_gone_is_not_checked(self, bench):
        bench.flood(CHECKS)
        bench.ask("gone", "b", ALICE, b"right")()
        bench.do_all()
        assert "gone" not in bench.told
        assert ("alice's", b"right") not in bench.checked


class TestStrangers:
    def test_hold_up_no_other_address(self, bench):
        bench.flood(MAX_WAITING)
        bench.ask("right", "192.0.2.2", ALICE, b"right")
        for _ in range(2 * CHECKS + 1):
            bench.do_one()
        assert bench.told["right"] is True

    def test_hold_up_no_other_user_of_their_address(self, bench):
        bench.flood(MAX_WAITING)
        bench.ask("right", "192.0.2.1", BOB, b"right")
        for _ in range(2 * CHECKS + 1):
            bench.do_one()
        assert bench.told["right"] is True

    def test_who_name_users_that_there_are_not_share_one_turn(self, bench):
        bench.flood(MAX_WAITING, user=None)
        bench.ask("right", "192.0.2.1", ALICE, b"right")
        for _ in range(2 * CHECKS + 1):
            bench.do_one()
        assert bench.told["right"] is True

    def test_from_however_many_addresses_wait_in_bounded_numbers(self, bench):
        for number in range(MAX_WAITING * 3):
            bench.flood(1, f"address {number}")
        refused = [who for who, outcome in bench.told.items() if outcome is None]
        assert len(refused) == MAX_WAITING * 2 - CHECKS
        bench.do_all()
        assert len(bench.checked) == MAX_WAITING + CHECKS

    def test_give_up_their_newest_place_to_an_address_with_fewer(self, bench):
        bench.flood(MAX_WAITING + CHECKS)
        assert not bench.told
        bench.ask("right", "192.0.2.2", ALICE, b"right")
        assert bench.told == {("192.0.2.1", MAX_WAITING + CHECKS - 1): None}
        bench.ask("one more", "192.0.2.1", ALICE, b"wrong again")
        assert bench.told["one more"] is None
        bench.do_all()
        assert bench.told["right"] is True

    def test_that_ask_again_come_behind_an_address_that_asks_once_however_many_they_are(self, bench):
        # most of them are told that they were not checked
        for times in range(2):
            for number in range(MAX_WAITING * 3):
                bench.ask((times, number), f"address {number}", ALICE, b"wrong")
        bench.ask("right", "192.0.2.2", ALICE, b"right")
        for _ in range(CHECKS + 1):
            bench.do_one()
        assert bench.told["right"] is True

    def test_that_ask_again_push_out_nobody_who_asks_once(self, bench):
        bench.flood(1, "192.0.2.1")
        bench.do_all()
        for number in range(MAX_WAITING + CHECKS):
            bench.ask(number, f"address {number}", ALICE, b"right")
        bench.ask("wrong", "192.0.2.1", ALICE, b"wrong again")
        assert bench.told["wrong"] is None
        assert None not in [bench.told.get(number) for number in range(MAX_WAITING) if number in bench.told]

    def test_are_forgiven_after_a_while(self, bench):
        for times, comes_first in ((0, "new"), (1, "new"), (2, "failed")):
            bench.flood(1, f"failed {times}")
            bench.do_all()
            for _ in range(times):
                bench.checks.forgive()
            bench.told.clear()
            bench.checked.clear()
            for number in range(CHECKS):
                bench.ask(("busy", number), "other", ALICE, b"%d" % number)
            bench.ask("failed", f"failed {times}", ALICE, b"failed")
            bench.ask("new", f"new {times}", ALICE, b"new")
            bench.do_all()
            assert bench.checked[CHECKS][1] == comes_first.encode()

    def test_are_remembered_in_bounded_numbers(self, bench, monkeypatch):
        monkeypatch.setattr(password_queue, "MAX_ADDRESSES", 10)
        for number in range(100):
            bench.flood(1, f"address {number}")
            bench.do_all()
        assert len(bench.checks._sent) + len(bench.checks._sent_before) <= 20


def test_waiting_for_all_others_takes_less_than_a_client_waits():
    # some 30 ms each
    assert password_queue.MAX_WAITING * 0.03 / password_queue.CHECKS < 5
