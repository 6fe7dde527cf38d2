"""The function that a worker runs, found by its name."""

import functools

import pytest

from darner.work.errors import WorkerError
from darner.work.loading import is_async, load


class Shop:
    @staticmethod
    def send(item):
        """Do nothing."""

    async def __call__(self, item):
        """Do nothing."""


async def call(item):
    """Do nothing."""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Return what writes a module that can be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    return lambda name, text: (tmp_path / f"{name}.py").write_text(text)


def test_a_function_is_found_by_its_name():
    assert load("os.path:join").__name__ == "join"


def test_the_name_behind_the_colon_may_have_dots(module):
    module("with_a_class", "class Shop:\n    @staticmethod\n    def send(item): return item\n")
    assert load("with_a_class:Shop.send")(3) == 3


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("shop", "'shop' is not of the form module:function"),
        ("shop:", "'shop:' is not of the form module:function"),
        (":send", "':send' is not of the form module:function"),
        ("shop mail:send", "is not of the form module:function"),
        ("no_such_shop:send", "there is no module no_such_shop"),
        ("os.no_such_path:join", "there is no module os.no_such_path"),
        ("os:no_such_call", "os has no no_such_call"),
        ("os:path.no_such_call", "os has no path.no_such_call"),
        ("os:sep", "os:sep is a str, and cannot be called"),
    ],
)
def test_a_name_that_names_no_function_is_an_error(name, error):
    with pytest.raises(WorkerError) as raised:
        load(name)
    assert error in str(raised.value)


def test_what_a_module_raises_is_not_taken_for_a_wrong_name(module):
    module("lacks_a_package", "import no_such_package\n")
    module("is_broken", "1 / 0\n")
    with pytest.raises(ModuleNotFoundError):
        load("lacks_a_package:send")
    with pytest.raises(ZeroDivisionError):
        load("is_broken:send")


def test_what_has_to_be_awaited_is_told_apart():
    assert is_async(call)
    assert is_async(Shop())
    assert is_async(functools.partial(call))
    assert not is_async(Shop.send)
