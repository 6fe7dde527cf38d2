"""The function that a worker runs, found by its name."""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from darner.work.errors import WorkerError


def load(name: str) -> Callable[[Any], object]:
    """Import a function by its name, `module:function`; the part behind the colon may have dots. Raises
    WorkerError if there is none. What the module itself raises is raised as it is."""
    module_name, _, path = name.partition(":")
    if not all(part.isidentifier() for part in f"{module_name}.{path}".split(".")):
        raise WorkerError(f"{name!r} is not of the form module:function, such as shop.mail:send")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # an import in that module may have failed as well: the name is not to blame for that
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise WorkerError(f"there is no module {error.name}") from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise WorkerError(f"{module_name} has no {path}") from None
    if not callable(found):
        raise WorkerError(f"{name} is {_kind(found)}, and cannot be called")
    return found  # type: ignore[no-any-return]


def is_async(function: Callable[[Any], object]) -> bool:
    """Return whether a call of the function has to be awaited."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004
    )


def _kind(found: object) -> str:
    name = type(found).__name__
    return f"{'an' if name[0] in 'aeio' else 'a'} {name}"
