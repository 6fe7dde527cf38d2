"""The commands that write a queue to a file and read it back: `export` and `import`."""

import json
import sys
from dataclasses import asdict
from typing import Any

import click

from darner.cli.connecting import QUEUE, SETTINGS, epilog, server_options
from darner.cli.outcome import INTERRUPTED, say
from darner.cli.progress import progress, stopping
from darner.client.client import Client
from darner.client.errors import BadRequestError
from darner.errors import DarnerError
from darner.tools.export_format import FormatError
from darner.tools.exporting import Export
from darner.tools.importing import Import, Imported, Source


@click.command(
    short_help="Write a queue to a file.",
    context_settings=SETTINGS,
    epilog=epilog("""
  darner export orders orders.export          a copy; the queue stays as it is
  darner export orders.failed old.export --remove
  darner export orders - | ssh other darner import - orders
"""),
)
@click.argument("queue", type=QUEUE)
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--remove", is_flag=True, help="Remove each item once the disk has it in the file.")
@click.option("--json", "as_json", is_flag=True, help="Say what was done as a JSON object.")
@server_options
def export(client: Client, queue: str, file: str, *, remove: bool, as_json: bool) -> None:
    """Write what waits in QUEUE now to FILE, while the queue is in use; - is standard output.

    Items that readers take, or hold, when their turn comes are not in it, nor delayed ones. If it is cut off,
    at whatever moment, the same command goes on with the file. docs/export-format.md describes the format.
    """
    try:
        job = Export(client, queue, file, removes=remove)
    except BadRequestError as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:
        raise _naming(file, error) from None
    if job.file.found:
        say(f"darner: {file} has {job.file.found} items: going on", err=True)
    done = job.done
    with progress(f"export {queue}", done.expected) as tell, stopping() as is_stopped:
        try:
            is_over = job.run(lambda: tell(done.items), is_stopped)
        except (DarnerError, OSError) as error:
            if file != "-":
                say(f"darner: {file} is not whole yet, and the same command goes on with it:", err=True)
            raise _naming(file, error) from None
    figures = {"items": job.file.items, "bytes": job.file.bytes, "is_whole": is_over}
    if remove:
        figures["removed"] = done.items
    if as_json:
        click.echo(json.dumps(figures), err=file == "-")
    else:
        text = f"{file} has {job.file.items} items, {job.file.bytes} bytes"
        say(text + (f"; {done.items} were removed from {queue}" if remove else ""), err=file == "-")
    if done.doubled:
        ids = ", ".join(map(str, sorted(done.doubled)))
        say(f"darner: the file has items that other readers have, too (open_timeout): {ids}", err=True)
    if not is_over:
        say("darner: interrupted: the same command goes on", err=True)
        sys.exit(INTERRUPTED)


@click.command(
    "import",
    short_help="Read an exported queue from a file.",
    context_settings=SETTINGS,
    epilog=epilog("""
  darner import orders.export                 into the queue that it is of
  darner import orders.export orders.again    into another one
  darner import orders.export --dry-run       is the file whole? what is in it?
"""),
)
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@click.argument("queue", type=QUEUE, required=False)
@click.option("--dry-run", is_flag=True, help="Check the file, say what it has, and put nothing.")
@click.option("--skip-damaged", is_flag=True, help="Import what is sound of a damaged file.")
@click.option("--again", is_flag=True, help="Import a file once more that was imported already.")
@click.option(
    "--may-double", is_flag=True, help="Go on with an import that was cut off so long ago that the server has"
    " forgotten what was put last.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Say what was done as a JSON object.")
@server_options
def import_(
    client: Client,
    file: str,
    queue: str | None,
    *,
    dry_run: bool,
    skip_damaged: bool,
    as_json: bool,
    **again: bool,
) -> None:
    """Put the items of FILE on QUEUE, or on the queue they are from; - is standard input.

    The file is checked before anything is put; a stream cannot be. Flags and what is left of the expiry go
    along; an item that has expired is left out. Beside the file another one notes how far the import has
    come: if it is cut off, the same command goes on.
    """
    with Source(file, skips_damaged=skip_damaged) as source:
        if source.is_file:
            found = _check(source)
            if dry_run:
                _tell(f"{file}, of {source.header.queue}, has", found, as_json=as_json)
                return
        elif dry_run:
            raise click.UsageError("--dry-run needs a file, not a stream")
        job = Import(client, source, queue, file, **again)
        for warning in job.warnings:
            say(f"darner: warning: {warning}", err=True)
        if job.done.earlier:
            say(f"darner: {job.done.earlier} items are imported already: going on", err=True)
        with progress("import", source.size or None, in_bytes=True) as tell, stopping() as is_stopped:
            try:
                is_over = job.run(tell, is_stopped)
            except (DarnerError, OSError) as error:
                unsure = f", and {job.done.unsure} more perhaps" if job.done.unsure else ""
                say(f"darner: {job.done.items} items are imported{unsure}; then:", err=True)
                raise _naming(file, error) from None
    _tell("imported", job.done, as_json=as_json)
    if not is_over:
        say("darner: interrupted: the same command goes on", err=True)
        sys.exit(INTERRUPTED)


def _naming(file: str, error: Exception) -> Exception:
    """Return an error, with the name of the file if it is one of the disk and has none."""
    if isinstance(error, OSError) and error.filename is None and file != "-":
        error.filename = file
    return error


def _check(source: Source) -> Imported:
    try:
        with progress("check", source.size, in_bytes=True) as tell:
            return source.check(tell)
    except FormatError:
        say("darner: nothing is imported; --skip-damaged imports what is sound:", err=True)
        raise


def _tell(what: str, done: Imported, *, as_json: bool) -> None:
    if as_json:
        figures: dict[str, Any] = asdict(done)
        say(json.dumps(figures))
        return
    rest = f", and {done.earlier} before" if done.earlier else ""
    if done.expired:
        rest += f"; {done.expired} have expired and are left out"
    if done.damaged:
        rest += f"; {done.damaged} damaged records are left out"
    say(f"{what} {done.items} items, {done.bytes} bytes{rest}")
