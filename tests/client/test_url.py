"""Addresses of servers, as URLs say them."""

import pytest

from darner.client import BadRequestError, url
from darner.client.url import Address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("a", Address("a")),
        ("a:1", Address("a", 1)),
        ("[::1]:1", Address("::1", 1)),
        ("darner://a/", Address("a")),
        ("darners://a:1", Address("a", 1, is_tls=True)),
        ("darner://me:pass%20word%40@a:1", Address("a", 1, user="me", password="pass word@")),
        ("darner+unix:///run/darner.sock", Address(path="/run/darner.sock")),
        (
            "darner+unix://me:secret@/run/d%20.sock",
            Address(path="/run/d .sock", user="me", password="secret"),
        ),
    ],
)
def test_says_where_a_server_listens_and_how_to_get_in(text, address):
    assert url.parse(text) == address


@pytest.mark.parametrize(
    "text",
    ["", "http://a", "darner://", "a:x", "a:99999", "a:0", "darner://a/path", "darner://a?x=1", "darner://me@a",
     "darner://a%20b:secret@a", "darner://a:secret%0A@a", "darner+unix://host/path",
     "darner+unix://", "a..b"],
)  # fmt: skip
def test_that_says_neither_is_refused_with_advice_and_without_its_password(text):
    with pytest.raises(BadRequestError) as raised:
        url.parse(text)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("servers", [[], ["a", "a:22133"], ["a", "darner://a"]])
def test_a_fleet_has_each_server_once(servers):
    with pytest.raises(BadRequestError, match="each once"):
        url.parse_all(servers)


def test_an_address_is_shown_without_its_password():
    address = url.parse("darner://me:secret@[::1]:5")
    assert str(address) == "[::1]:5"
    assert "secret" not in repr(address)
