"""What a command shows while it carries items, on a terminal; and how it is told to stop."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from darner.printable import printable


@contextlib.contextmanager
def progress(what: str, total: int | None, *, in_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """Give a function that is told how many items or bytes are done. It draws a bar with the rate and the
    time that is left, on standard error if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    # a script has no use for it
    from rich import progress as rich  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    class Rate(rich.ProgressColumn):
        """How many items a second."""

        def render(self, task: rich.Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.0f}/s")

    figures = (
        [rich.DownloadColumn(), rich.TransferSpeedColumn()]
        if in_bytes
        else [rich.MofNCompleteColumn(), Rate()]
    )
    with rich.Progress(
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        *figures,
        rich.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(printable(what), total=total)
        yield lambda done: bar.update(task, completed=done)


@contextlib.contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether SIGINT or SIGTERM has come. A second one ends the process."""
    came: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield lambda: bool(came)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
