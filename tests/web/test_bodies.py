"""The bytes of items, made readable."""

import pytest

from darner.web.body import readable


@pytest.mark.parametrize(
    ("data", "form", "shown_as", "text"),
    [
        (b'{"a": [1, "\xc3\xb6"]}', "auto", "json", '{\n  "a": [\n    1,\n    "ö"\n  ]\n}'),
        (b'{"a": 1}', "text", "text", '{"a": 1}'),
        (b"{no json", "json", "text", "{no json"),
        (b"[" * 100_000, "hex", "hex", None),
        (b"[" * 100_000, "json", "text", None),
        (b"one\n\ttwo", "auto", "text", "one\n        two"),
        (b"\x1b[31m\xe2\x80\xae\x00", "auto", "text", r"\x1b[31m\u202e\x00"),
        (b"\xffA", "auto", "hex", "00000000  ff 41                                            .A"),
        (b"\xffA", "text", "text", r"\xffA"),
        (b"", "auto", "text", ""),
    ],
)
def test_bytes_are_shown_in_the_form_that_was_asked_for_or_fits(data, form, shown_as, text):
    found = readable(data, form)
    assert found[0] == shown_as
    assert text is None or found[1] == text
