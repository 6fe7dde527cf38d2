"""Group commit: what is written when, who waits for it, and what comes of a write that fails."""

import pytest

from darner import commit, journal, leveldb
from darner._proto import Item
from darner.commit import Committer
from darner.errors import JournalError
from darner.journal import Journal


class Client:
    """Keeps what it was told."""

    def __init__(self):
        self.told = []

    def hold(self):
        self.told.append("hold")

    def release(self):
        self.told.append("release")

    def fail(self, slot, error):
        assert isinstance(error, JournalError)
        self.told.append(slot)


class Disk:
    """Journals, a thread that runs when told to, and writes that fail when told to."""

    def __init__(self, directory, monkeypatch):
        self.directory = directory
        self.threads = []
        self.committer = Committer(lambda work, done: self.threads.append((work, done)))
        self.failures = []
        self.committer.on_failure = lambda journal, error: self.failures.append(str(error))
        self.writes = []
        self.reloads = []
        # how the next writes of a journal fail: "before" or "after" they are done, or None
        self.plan = {}
        really_write = Journal.write

        def write(journal, batch):
            self.writes.append(journal.path.name)
            how = self.plan.get(journal.path.name)
            if how and how.pop(0) == "before":
                raise JournalError("disk full")
            really_write(journal, batch)
            if how is not None:
                del self.plan[journal.path.name]
                raise JournalError("lost its way back")

        monkeypatch.setattr(Journal, "write", write)

    def journal(self, name="work"):
        journal = Journal(self.directory / name, self.committer, 1)
        journal.on_reopen = lambda: self.reloads.append(name)
        return journal

    def put(self, journal, data, slot=0, *, sync=False):
        client = Client()
        item = Item(0, 0, 0, 0, data)
        journal.put(item)
        journal.batch.sync |= sync
        journal.acknowledge(client, slot)
        return client

    def thread_runs(self):
        work, done = self.threads.pop(0)
        try:
            work()
        except JournalError as error:
            done(error)
        else:
            done(None)

    @staticmethod
    def read(journal):
        items, _ = journal.read(journal.state.floor, 1000, 1 << 20)
        return [item.data for item in items]

    def on_disk(self, journal):
        """What is read after a kill."""
        journal._db.close()
        return self.read(Journal(journal.path, self.committer, 1))


@pytest.fixture
def disk(tmp_path, monkeypatch):
    return Disk(tmp_path, monkeypatch)


@pytest.fixture
def work(disk):
    return disk.journal()


class TestInline:
    def test_all_that_was_staged_for_a_journal_is_one_write(self, disk, work):
        other = disk.journal("other")
        clients = [disk.put(work, b"%d" % n) for n in range(10)] + [disk.put(other, b"x")]
        assert disk.committer.pending
        disk.committer.commit()
        assert not disk.committer.pending
        assert sorted(disk.writes) == ["other", "work"]
        assert all(client.told == [] for client in clients)
        assert disk.on_disk(work) == [b"%d" % n for n in range(10)]
        assert disk.on_disk(other) == [b"x"]

    def test_nothing_is_written_twice(self, disk, work):
        disk.put(work, b"a")
        disk.committer.commit()
        disk.committer.commit()
        assert disk.writes == ["work"]
        assert work.settled

    def test_an_item_set_and_fetched_in_one_turn_is_not_written(self, disk, work):
        client = disk.put(work, b"a")
        work.remove(work.batch.puts[1])
        assert not work.settled
        disk.committer.commit()
        assert work.settled
        assert disk.writes == []
        assert client.told == []

    def test_a_small_batch_is_not_synced(self, disk, work, monkeypatch):
        assert self.syncs(disk, work, monkeypatch, sync=False) == [False]

    def test_a_batch_with_a_sync_in_it_is_synced(self, disk, work, monkeypatch):
        assert self.syncs(disk, work, monkeypatch, sync=True) == [True]

    def syncs(self, disk, work, monkeypatch, *, sync):
        seen = []
        db = work._db

        class Spy:
            def write_batch(self, *, sync):
                seen.append(sync)
                return db.write_batch(sync=sync)

        work._db = Spy()
        disk.put(work, b"a", sync=sync)
        disk.committer.commit()
        work._db = db
        return seen


class TestInAThread:
    def test_a_sync_is_written_and_its_client_holds_until_that_is_done(self, disk, work):
        client = disk.put(work, b"a", sync=True)
        disk.committer.commit()
        assert (client.told, disk.writes) == (["hold"], [])
        disk.thread_runs()
        assert (client.told, disk.writes) == (["hold", "release"], ["work"])
        assert work.settled
        assert disk.threads == []

    def test_many_syncs_are_one(self, disk, work):
        clients = [disk.put(work, b"a", sync=True) for _ in range(50)]
        disk.committer.commit()
        disk.thread_runs()
        assert disk.writes == ["work"]
        assert all(client.told == ["hold", "release"] for client in clients)

    def test_who_set_beside_a_sync_holds_too(self, disk, work):
        client = disk.put(work, b"a")
        disk.put(work, b"b", sync=True)
        disk.committer.commit()
        assert client.told == ["hold"]

    def test_a_large_batch_is_written_there(self, disk, work, monkeypatch):
        monkeypatch.setattr(commit, "INLINE_BYTES", 99)
        work.batch.bytes += 100
        client = disk.put(work, b"x" * 100)
        disk.committer.commit()
        assert client.told == ["hold"]

    def test_what_comes_meanwhile_is_staged_and_written_next(self, disk, work):
        first = disk.put(work, b"a", sync=True)
        disk.committer.commit()
        second = disk.put(work, b"b")
        assert second.told == ["hold"]
        disk.committer.commit()
        assert len(disk.threads) == 1
        assert disk.read(work) == [b"a", b"b"]
        disk.thread_runs()
        assert first.told == second.told == ["hold", "release"]
        assert disk.writes == ["work", "work"]
        assert disk.on_disk(work) == [b"a", b"b"]

    def test_a_sync_that_comes_meanwhile_is_another_sync(self, disk, work):
        disk.put(work, b"a", sync=True)
        disk.committer.commit()
        second = disk.put(work, b"b", sync=True)
        disk.committer.commit()
        disk.thread_runs()
        assert second.told == ["hold"]
        assert len(disk.threads) == 1
        disk.thread_runs()
        assert second.told == ["hold", "release"]

    def test_an_item_that_is_being_written_can_be_removed(self, disk, work):
        disk.put(work, b"a", sync=True)
        disk.committer.commit()
        client = Client()
        work.remove(work.writing.puts[1])
        work.acknowledge(client, 0)
        disk.thread_runs()
        assert client.told == ["hold", "release"]
        assert disk.on_disk(work) == []

    def test_who_stages_nothing_but_depends_on_what_is_written_waits_for_it(self, disk, work):
        disk.put(work, b"a", sync=True)
        disk.committer.commit()
        client = Client()
        work.acknowledge(client, 0)
        assert not disk.committer.pending
        disk.thread_runs()
        assert client.told == ["hold", "release"]

    def test_a_sync_of_what_is_gone_already_holds_nobody(self, disk, work):
        client = disk.put(work, b"a", sync=True)
        work.remove(work.batch.puts[1])
        disk.committer.commit()
        assert (client.told, disk.threads) == ([], [])
        later = disk.put(work, b"b")
        disk.committer.commit()
        assert later.told.count("hold") == later.told.count("release")
        assert disk.on_disk(work) == [b"b"]

    def test_other_journals_do_not_wait(self, disk, work):
        other = disk.journal("other")
        disk.put(work, b"a", sync=True)
        client = disk.put(other, b"b")
        disk.committer.commit()
        assert client.told == []
        assert other.settled


class TestFailure:
    def test_of_a_write_fails_the_clients_and_nothing_of_it_stays(self, disk, work):
        disk.put(work, b"a")
        disk.committer.commit()
        disk.plan["work"] = ["before"]
        clients = [disk.put(work, b"b", slot=3), disk.put(work, b"c", slot=4)]
        disk.committer.commit()
        assert [client.told for client in clients] == [[3], [4]]
        assert disk.reloads == ["work"]
        assert disk.failures == ["disk full"]
        assert disk.read(work) == [b"a"]
        assert (work.state.items, work.state.bytes) == (1, 1)
        disk.plan.clear()
        assert disk.put(work, b"d").told == []
        disk.committer.commit()
        assert disk.on_disk(work) == [b"a", b"d"]

    def test_of_a_write_brings_back_what_was_removed_in_it(self, disk, work):
        disk.put(work, b"a")
        disk.committer.commit()
        disk.plan["work"] = ["before"]
        work.remove(work.find(1))
        disk.committer.commit()
        assert disk.read(work) == [b"a"]
        assert work.state.items == 1

    def test_after_the_write_was_done_is_none(self, disk, work):
        disk.plan["work"] = ["after"]
        client = disk.put(work, b"a")
        disk.committer.commit()
        assert client.told == []
        assert disk.reloads == ["work"]
        assert disk.on_disk(work) == [b"a"]

    def test_of_one_journal_leaves_the_others_alone(self, disk, work):
        disk.plan["work"] = ["before"]
        other = disk.journal("other")
        failed, well = disk.put(work, b"a", slot=1), disk.put(other, b"b")
        disk.committer.commit()
        assert (failed.told, well.told) == ([1], [])
        assert disk.reloads == ["work"]
        assert disk.on_disk(other) == [b"b"]

    def test_in_a_thread_fails_what_was_staged_behind_it_too(self, disk, work):
        disk.plan["work"] = ["before"]
        first = disk.put(work, b"a", slot=1, sync=True)
        disk.committer.commit()
        second = disk.put(work, b"b", slot=2)
        disk.thread_runs()
        assert first.told == ["hold", 1, "release"]
        assert second.told == ["hold", 2, "release"]
        assert disk.read(work) == []
        assert work.settled

    def test_in_a_thread_after_the_write_was_done_fails_only_what_was_staged_behind_it(self, disk, work):
        disk.plan["work"] = ["after"]
        first = disk.put(work, b"a", slot=1, sync=True)
        disk.committer.commit()
        second = disk.put(work, b"b", slot=2)
        disk.thread_runs()
        assert first.told == ["hold", "release"]
        assert second.told == ["hold", 2, "release"]
        assert disk.on_disk(work) == [b"a"]

    def test_of_what_was_staged_behind_a_write_in_a_thread_spares_that_one(self, disk, work):
        first = disk.put(work, b"a", slot=1, sync=True)
        disk.committer.commit()
        second = disk.put(work, b"b", slot=2)
        work_, done = disk.threads.pop()
        work_()
        disk.plan["work"] = ["before"]
        done(None)
        assert first.told == ["hold", "release"]
        assert second.told == ["hold", 2, "release"]
        assert disk.on_disk(work) == [b"a"]

    def test_to_open_again_keeps_the_journal_out_of_service(self, disk, work, monkeypatch):
        disk.plan["work"] = ["before"]
        client = disk.put(work, b"a", slot=1)
        really_open = leveldb.DB

        def refuse(*_, **__):
            raise leveldb.Error("still full")

        monkeypatch.setattr(leveldb, "DB", refuse)
        disk.committer.commit()
        assert client.told == [1]
        assert disk.failures[0] == "disk full"
        assert "still full" in disk.failures[1]
        assert "still full" in str(work.failed)
        assert disk.reloads == ["work"]
        monkeypatch.setattr(leveldb, "DB", really_open)
        work.reopen()
        assert work.failed is None
        assert disk.read(work) == []

    @pytest.mark.parametrize("before", [0, 1])
    def test_to_put_a_batch_together_is_told_once(self, disk, work, monkeypatch, before):
        for _ in range(before):
            disk.put(work, b"before")
            disk.committer.commit()
        monkeypatch.setattr(journal, "TRIM_RECORDS", 0)

        def refuse(*_):
            raise leveldb.Error("unreadable")

        with monkeypatch.context() as broken:
            broken.setattr(Journal, "_trim", refuse)
            client = disk.put(work, b"a", slot=1)
            disk.committer.commit()
        assert client.told == [1]
        assert disk.read(work) == [b"before"] * before

    def test_of_waiters_served_from_the_reloaded_journal_ends(self, disk, work):
        disk.put(work, b"a")
        disk.committer.commit()
        disk.plan["work"] = ["before", "before"]
        clients = [Client(), Client()]

        def serve():
            if clients:
                work.remove(work.find(1))
                work.acknowledge(clients.pop(), 5)

        work.on_reopen = serve
        told = clients[:]
        serve()
        disk.committer.commit()
        assert [client.told for client in told] == [[5], [5]]
        assert disk.read(work) == [b"a"]
        assert not disk.committer.pending
