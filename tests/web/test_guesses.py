"""How often passwords may be guessed."""

from darner.web.guesses import ADDRESSES, PER_MINUTE, Guesses


def guess(guesses: Guesses, address: str, times: int, now: float = 0) -> None:
    for _ in range(times):
        assert guesses.may_guess(address, now)
        guesses.note_wrong(address, now)


def test_an_address_has_so_many_guesses_a_minute():
    guesses = Guesses()
    guess(guesses, "10.0.0.1", PER_MINUTE)
    assert not guesses.may_guess("10.0.0.1", 59)
    assert guesses.may_guess("10.0.0.2", 59)
    assert guesses.may_guess("10.0.0.1", 61)


def test_the_addresses_of_one_owner_are_one():
    guesses = Guesses()
    guess(guesses, "2001:db8::1", PER_MINUTE)
    assert not guesses.may_guess("2001:db8::2", 0)
    assert guesses.may_guess("2001:db8:0:1::1", 0)


def test_too_many_addresses_that_guess_keep_all_others_waiting():
    guesses = Guesses()
    for number in range(ADDRESSES):
        guess(guesses, f"10.0.{number // 256}.{number % 256}", 1)
    assert not guesses.may_guess("192.0.2.1", 1)
    assert guesses.may_guess("192.0.2.1", 61)
