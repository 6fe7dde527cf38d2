"""Fixtures of journals and the log."""

import contextlib
import os

import pytest

from darner.journal import segment_pool
from darner.journal.segment_file import SegmentFile


@pytest.fixture(autouse=True)
def segment_files(monkeypatch):
    """Close the segments that a test leaves open: most of its processes are killed, and close none."""
    files = set()

    class Watched(SegmentFile):
        __slots__ = ()

        def __init__(self, path):
            super().__init__(path)
            files.add(self)

        def close(self):
            files.discard(self)
            super().close()

    monkeypatch.setattr(segment_pool, "SegmentFile", Watched)
    yield
    for file in files:
        with contextlib.suppress(BufferError):  # what is being written is unmapped with its log
            file.unmap()
        os.close(file.descriptor)
