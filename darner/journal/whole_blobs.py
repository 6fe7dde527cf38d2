"""Begins blobs of which all bytes are there at once, in the file of another blob or in memory."""

from pathlib import Path

from darner.errors import JournalError
from darner.journal.blob import write_whole
from darner.journal.journal import Journal
from darner.journal.leveldb import failure


def link_blob(journal: Journal, file: Path, copies: list[tuple[Path, Path]] | None = None) -> int:
    """Begin a blob with the bytes of another one, in `file`; return its id.

    If `file` cannot be linked, being on another file system, it is copied; or put into `copies`, if given,
    with where it is to be copied to. Raises JournalError if that cannot be done: then `file` is as it was.
    """
    blob = journal.begin_blob(file)
    path = journal.blobs.path_of(blob)
    try:
        journal.blobs.link(blob, file, copies)
    except OSError as error:
        journal.abandon_blob(blob)
        raise failure(f"cannot link {path} to {file}", error) from error
    journal.writer.note_link(path)
    return blob


def write_blob(journal: Journal, data: bytes) -> int:
    """Begin a blob with these bytes; return its id. Raises JournalError if that cannot be done."""
    blob = journal.begin_blob()
    path = journal.blobs.path_of(blob)
    try:
        write_whole(path, data)
    except JournalError:
        journal.abandon_blob(blob)
        raise
    journal.writer.note_link(path)
    return blob
