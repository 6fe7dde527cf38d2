"""The command `backup`."""

import contextlib
import os
import signal
import ssl
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from darner.cli.connecting import connect, saying_errors, tls_options
from darner.cli.outcome import say
from darner.errors import ToolError
from darner.log.lines import set_up_log
from darner.repair import backup as backups
from darner.tools.server_settings import data_directory

# Between two looks whether the server has answered.
PAUSE_S = 0.05


@click.command(short_help="Copy a data directory while a server has it.")
@click.argument("data", type=click.Path(), metavar="DATA|URL")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--keep-damaged", is_flag=True, help="Keep the copy even if a queue in it is damaged.")
@tls_options
def backup(data: str, directory: Path, *, keep_damaged: bool, tls: ssl.SSLContext | None) -> None:
    """Copy the data directory DATA to DIR, which must not exist or be empty; a server may go on to use DATA.

    URL is that of a server on this machine, which says where its DATA is. For another machine's, run this
    there: ssh HOST darner backup DATA DIR.

    DIR is as a server that was killed at one moment of the backup would have left DATA: it has all that was
    answered before the backup began, and nothing that was removed by then. It is on the disk and was checked
    as by darner check before it gets its name. A server starts on it: darner --data DIR. To restore, put it
    in the place of DATA. Run it as the server's user, or as root.

    \b
    Examples:
      darner backup /var/lib/darner /backup/darner-$(date +%F)
      darner backup darner://127.0.0.1:22133 /backup/darner
      darner --data /backup/darner-2026-11-24 --port 22134
    """
    path = _data_of(data, tls) if "://" in data else Path(data)
    set_up_log()
    with _ended_by_signals(), _shown() as progress:
        made = backups.back_up(
            path, directory, lambda: time.sleep(PAUSE_S), progress, keep_damaged=keep_damaged
        )
    figures = f"queues={made.queues} items={made.items} bytes={made.bytes}"
    for report in made.problems:
        say(f"{report.where}: {'; '.join(report.problems)}", err=True)
    if not made.problems:
        say(f"{directory}: ok, {figures}")
        return
    what = f"it is in {directory}" if keep_damaged else "it was deleted; --keep-damaged keeps it"
    say(f"darner: the copy is not whole, {figures}; {what}", err=True)
    sys.exit(1)


def _data_of(server: str, tls: ssl.SSLContext | None) -> Path:
    """Return where a server has its data. Exits unless that is on this machine."""
    with saying_errors(), connect((server,), tls) as client:
        path = data_directory(client)
        # the wire shows neither what is reserved or delayed nor one moment of all queues
        if path is None:
            raise ToolError("that server is too old to say where its data is: name the directory")
        if not _has_open(client.stats().pid, path):
            raise ToolError(
                f"that server has its data in {path}, on another machine or out of sight (of a container, or"
                f" of another user): run `darner backup {path} DIR` where it runs, as over ssh"
            )
        return path


def _has_open(process: int, path: Path) -> bool:
    """Return whether a process has a directory open, for another machine's may have the same name."""
    with contextlib.suppress(OSError):
        directory = path.stat()
        for each in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it is closed meanwhile
                if os.path.samestat(directory, each.stat()):
                    return True
    return False


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Have signals end the body as an exception does, so that it leaves nothing."""

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    yield


@contextlib.contextmanager
def _shown() -> Iterator[backups.Progress]:
    """Show how far it is, if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    # only here is it needed, and it takes a while to load
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as shown:
        tasks = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = shown.add_task(what)
            shown.update(tasks[what], completed=done, total=total)

        yield progress
