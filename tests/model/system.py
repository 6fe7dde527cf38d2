"""A double of the operating system below a data directory: its calls, at each of which the process may be
killed, and its disk.

After a power cut the disk has no more than the common file systems promise:

- Of each directory by itself: its entries at its last fsync, and the first ones of its changes since then.
- Of a segment: any of the pages that were written since its last fsync.
- Of any other file: its content at its last fsync, and a part of what was written behind it since then.
- LevelDB's own files, whole: LevelDB is not tested here.

On a full disk each call that may need space fails, and so does a write by Python's own files. The double of
LevelDB asks by itself whether the disk is full.
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
    """The process was killed."""


def path_of(descriptor):
    return Path(f"/proc/self/fd/{descriptor}").readlink()


class RoomyFile(io.FileIO):
    """A file whose writes need space."""

    def __init__(self, system, path):
        super().__init__(path, "wb")
        self._system = system

    def write(self, data):
        self._system._need_room()
        return super().write(data)


class System:
    """The calls of the system, and what the disk has of the files in the directory `data`."""

    # calls at which the process may be killed, and calls that change a directory
    CALLS = (
        "open", "mkdir", "rename", "link", "unlink", "rmdir", "fsync", "fdatasync", "pwrite",
        "posix_fallocate",
    )  # fmt: skip
    NAMING = ("open", "mkdir", "rename", "link", "unlink", "rmdir")
    # calls that may need space; "open" of a new file does, too
    ROOMY = ("mkdir", "rename", "link", "unlink", "pwrite", "posix_fallocate")

    def __init__(self, patch, data, page_bytes):
        self.calls_left = 0  # until the process is killed; 0 for never
        self._logged = {}  # when it was killed: the segments, by path
        # how many more calls find space, None for all; and how many do once the reserve is released
        self.room = None
        self.room_in_reserve = 0
        # whether a rename within a directory needs no space just now
        self.has_names = lambda: False
        self.sync_fails = False
        self._data = str(data)
        self._page_bytes = page_bytes
        # links that keep files for as long as the disk may have an entry of them
        self._stash = Path(f"{data}-stash")
        self._stash.mkdir()
        # by inode of a directory: its entries at its last fsync, and after each change since then
        self._entries = {}
        self._on_disk = {}  # of segments, by inode
        self._synced_bytes = {}  # of other files, by inode
        self._lost = {}  # by inode of a segment: its content when an fsync failed
        # whether, since the last power cut, an fsync failed, and whether pages were written back without one
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
                    self._logged = {path: path.read_bytes() for path in self._segments()}
                    raise Killed
            is_roomy = name in self.ROOMY or (name == "open" and self._creates(*args))
            if name == "unlink" and "dir_fd" not in options:
                is_roomy = os.path.lexists(args[0])  # else it fails with ENOENT
            if is_roomy and not (name == "rename" and self.has_names()):
                self._need_room()
            if before is not None:
                before(*args)
            result = call(*args, **options)
            if name in self.NAMING:
                self._note_call(name, args, options, result)
            return result

        return wrapped

    # Space

    @property
    def full(self):
        """Whether the disk is full, or will be after some more calls."""
        return self.room is not None

    def has_no_room(self):
        """Ask for space for one call; return whether there is none."""
        if not self.room:
            return self.full
        self.room -= 1
        return False

    def _need_room(self):
        if self.has_no_room():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextlib.contextmanager
    def with_room(self):
        """Give the model itself space on a full disk."""
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
        """Close the segments and locks that the process has open; of what it logged on its way out, as no
        killed process does, the disk has nothing."""
        self.calls_left = 0
        for path, content in self._logged.items():
            descriptor = self._calls["open"](path, os.O_WRONLY)
            self._calls["pwrite"](descriptor, content, 0)
            self._calls["close"](descriptor)
        self._logged = {}
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
        """Return whether the entries of a directory are noted: not if it is being deleted."""
        inside = str(directory).removeprefix(self._data)
        return inside != str(directory) and not inside.startswith(f"/{TRASH_NAME}/")

    def _note(self, directory):
        """Note the current entries of a directory."""
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
        # a new file
        for each in (self._on_disk, self._lost, self._synced_bytes):
            each.pop(inode, None)

    def _forget(self):
        """Delete the links of files that no directory on the disk may have."""
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
        # a page that a failed fsync has lost is not written again unless it changes
        lost, before = self._lost.get(inode, b""), self._before(inode, content)
        self._on_disk[inode] = b"".join(
            content[page] if lost[page] != content[page] and is_written() else before[page]
            for page in self._pages(content)
        )

    def write_back(self, chance):
        """Write some pages of segments to the disk, as the kernel does when memory is short."""
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
        """Cut the power: keep what the disk has, and some of the rest; `in_order` the log loses its end."""
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
        """Build a directory as the disk has it."""
        self._calls["mkdir"](target)
        states = self._entries.get(inode, [{}])
        entries = states[chance.choice((0, len(states) - 1, chance.randrange(len(states))))]
        path = where.pop(inode)
        for entry in list(os.scandir(path)):
            if OF_LEVELDB.fullmatch(entry.name):
                self._calls["rename"](entry.path, target / entry.name)
        # a directory in its old place is not in the trash
        for name, of_entry in sorted(entries.items(), key=lambda entry: entry[0] == TRASH_NAME):
            found = where.get(of_entry)
            if found is None:
                # A rename moved it, and its new place is built already; or it was removed, and nobody reads
                # what comes back to the trash.
                assert TRASH_NAME in target.parts, f"{name} may come back, and its content is lost"
            elif found.is_dir():
                self._rebuild(of_entry, target / name, where, chance)
            else:
                self._calls["link"](found, target / name)

    def _lose_pages(self, chance):
        for path in sorted(self._segments()):
            share = chance.choice((0, 0.5, 1))
            self._cut(path, lambda share=share: chance.random() < share)

    def _lose_last_pages(self, chance):
        """Lose pages as `_lose_pages` does, but never a page that was written before a page that is kept."""
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
        """Note all files as they are as the state of the disk."""
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
        """Delete the directory and the links."""
        for path in (self._data, self._stash):
            shutil.rmtree(path, ignore_errors=True)
