"""A migration that is killed at any of its steps is gone on with: no item is missing, none is there twice.

The steps are before and after each put, each sync to the disk and each file that takes another one's place.
The long profile goes through all of them, the short one through some.
"""

import contextlib
import itertools
import os
import shutil

import pytest
from kills import killed_at
from other_servers import write_siberite

from darner.journal.journal import Journal
from darner.migrate.migration import Migration
from darner.migrate.steps import Steps
from darner.migrate.survey import Options, Survey
from darner.migrate.target import Target

LARGE = b"x" * 70_000
ITEMS = {b"first": [b"1", LARGE, b"3", b"4"], b"second": [b"5", b"6", LARGE], b"third": []}
BEGAN_MS = 1_800_000_000_000


def _count_steps(counted):
    os.fsync = counted(os.fsync)
    os.replace = counted(os.replace)
    os.rename = counted(os.rename)
    Target.put = counted(Target.put)
    Journal.put = counted(Journal.put)


@pytest.fixture
def src(tmp_path):
    for name, items in ITEMS.items():
        write_siberite(
            tmp_path / "src" / name.decode(), *items, cursors={b"bill": 2}, failed={b"bill": items[:1]}
        )
    return tmp_path / "src"


@pytest.mark.parametrize("stride", [17, pytest.param(1, marks=pytest.mark.long)])
def test_that_is_killed_at_any_step_is_gone_on_with(src, tmp_path, stride):
    data = tmp_path / "data"

    def work():
        survey = Survey("siberite", src, Options())
        migration = Migration(survey, data)
        steps = Steps(lambda _: None, lambda: False)
        state = migration.state or migration.plan(survey.read(BEGAN_MS, steps), BEGAN_MS)
        if not migration.is_over:
            migration.copy(state, steps)
            migration.check(state, steps)

    for step in itertools.count(1, stride):
        shutil.rmtree(data, ignore_errors=True)
        was_killed = killed_at(step, work, _count_steps)
        if was_killed:
            # killed once more on its way, and gone on with then
            killed_at(step // 2 + 1, work, _count_steps)
            work()
        assert (data / ".migrated").exists()
        with contextlib.closing(Target(data)._broker) as broker:
            broker.open()
            for name, items in ITEMS.items():
                queue = broker.queue(name)
                assert [len(item.data or LARGE) for item in _all(queue)] == [len(data) for data in items]
                passed = min(len(items), 2)
                assert queue.journal.cursors == {b"bill": [1 + passed, *range(1, 2 if items else 1)]}
        if not was_killed:
            break
    assert step > 80


def _all(queue):
    return list(queue.journal.items_from(1))
