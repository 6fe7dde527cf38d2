"""The flags of memcached's meta commands, and the replies with what they ask for."""

import pytest

from darner.meta_flags import Meta


class TestReply:
    def test_to_a_get_has_what_was_asked_in_its_order(self):
        meta = Meta(b"mg", [b"work/open", b"v", b"t", b"c", b"O7", b"f", b"s", b"k", b"h", b"l"])
        assert meta.found(3, 5, 9, 2, 60, 1) == b"VA 3 t60 c9 O7 f5 s3 kwork/open h1 l1\r\n"

    def test_without_data_says_so(self):
        assert Meta(b"mg", [b"work", b"h", b"t"]).found(3, 5, 9, 0, -1, 0) == b"HD h0 t-1\r\n"

    def test_has_the_key_as_it_was_sent(self):
        meta = Meta(b"mg", [b"d29yaw==", b"k", b"b"])
        assert meta.key == b"work"
        assert meta.found(3, 5, 9, 0, -1, 0) == b"HD kd29yaw== b\r\n"

    @pytest.mark.parametrize(
        ("verb", "reply", "expected", "quietly"),
        [
            (b"mg", b"END\r\n", b"EN", False),
            (b"ms", b"STORED\r\n", b"HD", False),
            (b"ms", b"NOT_STORED\r\n", b"NS", True),
            (b"md", b"DELETED\r\n", b"HD", False),
            (b"md", b"NOT_FOUND\r\n", b"NF", False),
        ],
    )
    def test_is_what_a_classic_one_means_and_quiet_where_that_says_little(
        self, verb, reply, expected, quietly
    ):
        assert Meta(verb, [b"a"]).answer(reply) == expected + b"\r\n"
        assert Meta(verb, [b"a", b"k", b"O1"]).answer(reply) == expected + b" ka O1\r\n"
        assert Meta(verb, [b"a", b"q"]).answer(reply) == (expected + b"\r\n" if quietly else b"")

    def test_to_a_set_has_the_id_of_what_was_stored(self):
        assert Meta(b"ms", [b"a", b"c"]).answer(b"STORED\r\n", 17) == b"HD c17\r\n"
        assert Meta(b"ms", [b"a", b"c"]).answer(b"NOT_STORED\r\n") == b"NS\r\n"

    def test_that_is_an_error_stays_one(self):
        for flags in ([], [b"q"]):
            assert Meta(b"ms", [b"a", *flags]).answer(b"SERVER_ERROR x\r\n") == b"SERVER_ERROR x\r\n"


@pytest.mark.parametrize(
    ("verb", "flag", "error"),
    [
        (b"mg", b"T30", b"invalid flag"),
        (b"mg", b"N30", b"invalid flag"),
        (b"mg", b"v1", b"invalid flag"),
        (b"ms", b"C1", b"invalid flag"),
        (b"ms", b"ME", b"invalid mode"),
        (b"ms", b"F", b"bad command line format"),
        (b"md", b"x", b"invalid flag"),
        (b"md", b"Cx", b"bad command line format"),
    ],
)
def test_flag_that_a_verb_does_not_take_is_refused(verb, flag, error):
    with pytest.raises(ValueError, match="CLIENT_ERROR") as refused:
        Meta(verb, [b"a", flag])
    assert error in refused.value.args[0]
