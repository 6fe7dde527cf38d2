"""The system below a data directory: its calls, each of which may be a process's last, and its disk.

What is on the disk after a power cut is as little as the file systems in use promise:

- Of a directory's entries, what it had at its last sync, and of the changes since as many as came to the
  disk, in order. Each directory is by itself.
- Of the pages of a segment, any of those that were written since its last sync.
- Of any other file, some more of it than at its last sync.
- LevelDB's own files as they are: what it is told to sync it does, and it is not on trial here.

When the disk is full, each call that may need room fails for want of it, and so does what Python's own files
write. That LevelDB needs some, too, is for who stands in for it to ask.
"""

import contextlib
import errno
import io
import os
import re
import shutil
import stat
from pathlib import Path

LOG_NAME = ".log"
RESERVE_NAME = ".reserve"
LOCK_NAME = ".lock"
TRASH_NAME = ".trash"
OF_LEVELDB = re.compile(r"CURRENT|LOCK|LOG|LOG\.old|MANIFEST-\d+|\d+\.(ldb|log|dbtmp)")


class Killed(BaseException):
    """The process is no more."""


def path_of(descriptor):
    return Path(f"/proc/self/fd/{descriptor}").readlink()


class RoomyFile(io.FileIO):
    """A file that needs room for what is written."""

    def __init__(self, system, path):
        super().__init__(path, "wb")
        self._system = system

    def write(self, data):
        self._system._need_room()
        return super().write(data)


class System:
    """The system's calls, and what of the files in the directory `data` is on the disk."""

    # those at which a process may be killed, and those that change a directory
    CALLS = (
        "open", "mkdir", "rename", "link", "unlink", "rmdir", "fsync", "fdatasync", "pwrite",
        "posix_fallocate",
    )  # fmt: skip
    NAMING = ("open", "mkdir", "rename", "link", "unlink", "rmdir")
    # those that may need room; and "open", of a file that is not there
    ROOMY = ("mkdir", "rename", "link", "unlink", "pwrite", "posix_fallocate")

    def __init__(self, patch, data, page_bytes):
        self.calls_left = 0  # until the process is killed; 0 is never
        # how many more calls find room, None if all do; and how many do once the reserve is let go of
        self.room = None
        self.room_in_reserve = 0
        # whether a new name in place of another in the same directory needs none just now
        self.has_names = lambda: False
        self.sync_fails = False
        self._data = str(data)
        self._page_bytes = page_bytes
        # files keep their bytes here for as long as the disk may have a name of them
        self._stash = Path(f"{data}-stash")
        self._stash.mkdir()
        # what each directory has, by inode: at its last sync, and after each change since
        self._entries = {}
        self._on_disk = {}  # of segments, by inode
        self._synced_bytes = {}  # of other files, by inode
        self._lost = {}  # of segments, what was in memory when a sync failed
        # since the last power cut, whether a sync failed, and whether pages were written by themselves
        self.has_failed = False
        self.has_written_back = False
        self._descriptors = set()
        self._calls = {name: getattr(os, name) for name in (*self.CALLS, "close")}
        for name in self.CALLS:
            patch.setattr(os, name, self._wrapped(name))
        patch.setattr(os, "close", self._close)
        truncate, open_file = os.truncate, io.open
        patch.setattr(os, "truncate", lambda path, size: self._truncate(truncate, path, size))
        patch.setattr(io, "open", lambda *args, **options: self._open_file(open_file, *args, **options))
        self._settle()

    def _wrapped(self, name):
        call = self._calls[name]
        before = getattr(self, "_" + name, None)

        def wrapped(*args, **options):
            if self.calls_left:
                self.calls_left -= 1
                if not self.calls_left:
                    raise Killed
            is_roomy = name in self.ROOMY or (name == "open" and self._creates(*args))
            if name == "unlink" and "dir_fd" not in options:
                is_roomy = os.path.lexists(args[0])  # else it says just that
            if is_roomy and not (name == "rename" and self.has_names()):
                self._need_room()
            if before is not None:
                before(*args)
            result = call(*args, **options)
            if name in self.NAMING:
                self._note_call(name, args, options, result)
            return result

        return wrapped

    # Room

    @property
    def full(self):
        """Whether the disk is, or soon will be."""
        return self.room is not None

    def has_no_room(self):
        """Ask for room; whether there is none."""
        if not self.room:
            return self.full
        self.room -= 1
        return False

    def _need_room(self):
        if self.has_no_room():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextlib.contextmanager
    def with_room(self):
        """For the model itself there is always some."""
        room, self.room = self.room, None
        try:
            yield
        finally:
            self.room = room

    def _creates(self, path, flags, *_):
        return flags & os.O_CREAT and not os.path.exists(path)  # noqa: PTH110

    def _truncate(self, truncate, path, size):
        truncate(path, size)
        if self.full and Path(path).name == RESERVE_NAME:
            self.room += self.room_in_reserve

    def _open_file(self, open_file, path, mode="r", *args, **options):
        if mode != "wb" or not str(path).startswith(self._data):
            return open_file(path, mode, *args, **options)
        self._need_room()
        return io.BufferedWriter(RoomyFile(self, path))

    # The end of a process

    def _close(self, descriptor):
        self._descriptors.discard(descriptor)
        self._calls["close"](descriptor)

    def end_process(self):
        """Close the segments and the locks that the process has open, wherever it has them."""
        self.calls_left = 0
        while self._descriptors:
            self._calls["close"](self._descriptors.pop())

    # Directories

    def _note_call(self, name, args, options, result):
        if name == "open":
            path, flags = args[0], args[1]
            if not str(path).startswith(self._data):
                return
            is_of_log = Path(path).parent.name == LOG_NAME and flags & os.O_CREAT
            if is_of_log or flags & os.O_DIRECTORY or Path(path).name == LOCK_NAME:
                self._descriptors.add(result)
            if not flags & os.O_CREAT:
                return
        directory = options.get("dir_fd")
        if directory is not None:
            self._note(path_of(directory))
            return
        for path in args[:2] if name in ("rename", "link") else args[:1]:
            if str(path).startswith(self._data):
                self._note(Path(path).parent)
                if name == "mkdir":
                    self._entries[path.stat().st_ino] = [{}]

    def _is_noted(self, directory):
        """Whether what is in there is of interest: not if it is being deleted."""
        inside = str(directory).removeprefix(self._data)
        return inside != str(directory) and not inside.startswith(f"/{TRASH_NAME}/")

    def _note(self, directory):
        """Take note of what a directory has now."""
        if not self._is_noted(directory):
            return
        inode = directory.stat().st_ino
        found = [entry for entry in os.scandir(directory) if not OF_LEVELDB.fullmatch(entry.name)]
        now = {entry.name: entry.inode() for entry in found}
        states = self._entries.setdefault(inode, [{}])
        if now == states[-1]:
            return
        known = set(states[-1].values())
        for entry in found:
            if entry.inode() not in known and not entry.is_dir():
                self._keep(entry.path, entry.inode())
        states.append(now)

    def _keep(self, path, inode):
        try:
            self._calls["link"](path, self._stash / str(inode))
        except FileExistsError:
            return
        # it is new
        for each in (self._on_disk, self._lost, self._synced_bytes):
            each.pop(inode, None)

    def _forget(self):
        """Let go of the files that no directory may have any more."""
        named = {inode for states in self._entries.values() for state in states for inode in state.values()}
        for entry in list(os.scandir(self._stash)):
            if int(entry.name) not in named:
                self._calls["unlink"](entry.path)

    # Syncs

    def _fsync(self, descriptor):
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self._note(path_of(descriptor))
            if status.st_ino in self._entries:
                del self._entries[status.st_ino][:-1]
                self._forget()
        else:
            self._note(path_of(descriptor).parent)
            self._synced_bytes[status.st_ino] = status.st_size

    def _fdatasync(self, descriptor):
        status = os.fstat(descriptor)
        inode, content = status.st_ino, os.pread(descriptor, status.st_size, 0)
        if self.sync_fails:
            self._lost[inode] = content
            self.has_failed = True
            raise OSError(errno.EIO, "cannot write")
        self._write_back(inode, content, lambda: True)

    def _pwrite(self, descriptor, *_):
        self._lost.pop(os.fstat(descriptor).st_ino, None)

    def _write_back(self, inode, content, is_written):
        # what was lost once is not written again unless it changes
        lost, before = self._lost.get(inode, b""), self._before(inode, content)
        self._on_disk[inode] = b"".join(
            content[page] if lost[page] != content[page] and is_written() else before[page]
            for page in self._pages(content)
        )

    def write_back(self, chance):
        """Have some pages of segments on the disk, as it comes about when memory is short."""
        self.has_written_back = True
        for path in sorted(self._segments()):
            share = chance.choice((0, 0.2, 0.8))
            self._write_back(
                path.stat().st_ino, path.read_bytes(), lambda share=share: chance.random() < share
            )

    def _segments(self):
        return Path(self._data, LOG_NAME).iterdir()

    def _before(self, inode, content):
        return self._on_disk.get(inode, b"").ljust(len(content), b"\0")

    def _pages(self, content):
        return [slice(at, at + self._page_bytes) for at in range(0, len(content), self._page_bytes)]

    # Power cuts

    def lose_power(self, chance, *, in_order):
        """Leave what is on the disk, and some of the rest: of the log, if it is to be `in_order`, what was
        written first."""
        data, after = Path(self._data), Path(f"{self._data}-after")
        where = {int(entry.name): Path(entry.path) for entry in os.scandir(self._stash)}
        where[data.stat().st_ino] = data
        for directory, names, files in os.walk(data):
            self._note(Path(directory))
            where |= {Path(directory, name).stat().st_ino: Path(directory, name) for name in (*names, *files)}
        self._rebuild(data.stat().st_ino, after, where, chance)
        with self.with_room():
            shutil.rmtree(data)
            after.rename(data)
        if in_order:
            self._lose_last_pages(chance)
        else:
            self._lose_pages(chance)
        self._lose_ends(chance)
        self._settle()

    def _rebuild(self, inode, target, where, chance):
        """Make a directory anew, as it is on the disk."""
        self._calls["mkdir"](target)
        states = self._entries.get(inode, [{}])
        entries = states[chance.choice((0, len(states) - 1, chance.randrange(len(states))))]
        path = where.pop(inode)
        for entry in list(os.scandir(path)):
            if OF_LEVELDB.fullmatch(entry.name):
                self._calls["rename"](entry.path, target / entry.name)
        # what is in its old place is not in the trash
        for name, of_entry in sorted(entries.items(), key=lambda entry: entry[0] == TRASH_NAME):
            found = where.get(of_entry)
            if found is None:
                # it was moved, in one step, to where it is already
                assert target.name == TRASH_NAME, f"{name} may come back, and is gone for good"
            elif found.is_dir():
                self._rebuild(of_entry, target / name, where, chance)
            else:
                self._calls["link"](found, target / name)

    def _lose_pages(self, chance):
        for path in sorted(self._segments()):
            share = chance.choice((0, 0.5, 1))
            self._cut(path, lambda share=share: chance.random() < share)

    def _lose_last_pages(self, chance):
        """As `_lose_pages`, but of two pages that were written since the last sync the first one is there."""
        paths = [path for path in self._segments() if path.name.isdecimal()]
        left = chance.randrange(1 + sum(len(self._pages(path.read_bytes())) for path in paths))

        def is_written():
            nonlocal left
            left -= 1
            return left >= 0

        for path in sorted(paths, key=lambda path: int(path.name)):
            self._cut(path, is_written)

    def _cut(self, path, is_written):
        content = path.read_bytes()
        before = self._before(path.stat().st_ino, content)
        with path.open("r+b") as file:
            for page in self._pages(content):
                file.write(content[page] if is_written() else before[page])

    def _lose_ends(self, chance):
        for directory, names, files in os.walk(self._data):
            names[:] = [name for name in sorted(names) if name not in (LOG_NAME, TRASH_NAME)]
            for name in sorted(files):
                path = Path(directory, name)
                status = path.stat()
                synced = self._synced_bytes.get(status.st_ino, 0)
                if not OF_LEVELDB.fullmatch(name) and synced < status.st_size:
                    os.truncate(path, chance.randrange(synced, status.st_size + 1))
                    self._synced_bytes[status.st_ino] = status.st_size

    def _settle(self):
        """All there is is on the disk."""
        for each in (self._entries, self._on_disk, self._synced_bytes, self._lost):
            each.clear()
        for entry in list(os.scandir(self._stash)):
            self._calls["unlink"](entry.path)
        for directory, _, files in os.walk(self._data):
            self._note(Path(directory))
            for name in files:
                path = Path(directory, name)
                self._synced_bytes[path.stat().st_ino] = path.stat().st_size
        for states in self._entries.values():
            del states[:-1]
        if Path(self._data, LOG_NAME).exists():
            for path in self._segments():
                self._on_disk[path.stat().st_ino] = path.read_bytes()
        self.has_failed = self.has_written_back = False

    def remove(self):
        """Delete what there is."""
        for path in (self._data, self._stash):
            shutil.rmtree(path, ignore_errors=True)
