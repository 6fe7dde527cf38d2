"""Names of queues, and the names of their directories."""

import os

import pytest
from hypothesis import given
from queue_names import NOT_IN_NAMES, names

from darner._proto import valid_name
from darner.queues.names import directory_of, name_of

PLAIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+-."

# the last piece of their directories would be ".", "..", or start with a dot
DOTTED = [b"\xff" * 5 + b"a" * 239 + tail for tail in (b".", b"..", b".a", b"...", b"....")]


class TestName:
    @given(names)
    def test_comes_back_from_its_directory(self, name):
        assert valid_name(name)
        assert name_of(directory_of(name)) == name

    @given(names)
    def test_stays_inside_the_data_directory_in_names_that_fit(self, name):
        directory = directory_of(name)
        assert not directory.is_absolute()
        for piece in directory.parts:
            assert piece not in (".", "..")
            assert not piece.startswith(".")
            assert len(os.fsencode(piece)) <= 255
            assert set(os.fsencode(piece)) <= {*PLAIN, ord("%")}
        assert all(piece.endswith("%") for piece in directory.parts[:-1])
        assert not directory.parts[-1].endswith("%")

    @given(names, names)
    def test_has_its_directory_to_itself(self, one, other):
        if one != other:
            assert directory_of(one) != directory_of(other)
            assert directory_of(one) not in directory_of(other).parents

    @pytest.mark.parametrize("name", DOTTED)
    def test_with_dots_where_a_long_one_is_cut_is_a_name_like_any(self, data, name):
        assert ".." not in directory_of(name).parts
        data.push(name, b"in it")
        assert not (data.path / "CURRENT").exists()
        data.restart()
        assert data.broker.queue(name).pop().data == b"in it"
        assert data.broker.totals.queue_creates == 0

    def test_that_is_plain_is_its_directory(self):
        for name in (b"work", b"a.b", b"A_b-c+d", b"0"):
            assert str(directory_of(name)) == name.decode()

    def test_that_is_not_plain_is_encoded(self):
        assert str(directory_of(b".a.b")) == "%2Ea.b"
        assert str(directory_of(b"..")) == "%2E."
        assert str(directory_of(b"~a%\xff")) == "%7Ea%25%FF"

    @pytest.mark.parametrize(
        "name",
        [
            bytes(c for c in range(256) if c not in NOT_IN_NAMES),
            b"\xff" * 250,
            b"%" * 250,
            b".." * 125,
            b"x" * 250,
            b"~",
        ],
    )
    def test_of_any_kind_is_served_found_and_deleted(self, data, name):
        data.push(name, b"a")
        assert data.restart().queue(name).pop().data == b"a"
        data.broker.delete(name)
        data.tick()
        assert data.directories() == []
        assert data.restart().queues == {}

    def test_that_is_long_may_go_while_its_neighbour_stays(self, data):
        one, other = b"\xff" * 200 + b"a", b"\xff" * 200 + b"b"
        data.push(one, b"one")
        data.push(other, b"other")
        data.broker.delete(one)
        data.tick()
        assert set(data.restart().queues) == {other}
        assert data.broker.queue(other).pop().data == b"other"
