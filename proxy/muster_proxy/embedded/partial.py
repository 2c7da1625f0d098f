"""The one unfinished file of a model: where bytes gather, whatever the source.

Its length is the whole record of how far a fetch is, so nothing else can disagree with it after a crash. It
is also the lock: one process at a time holds it (`flock`), death releases it, and no lock file is left over.
"""

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from muster_proxy.embedded.errors import CacheUnwritableError, DiskFullError

# What the system calls "no room": the disk, the user's quota, the largest file allowed.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

# Room that is left to others; a disk that is filled to the last byte breaks programs that did nothing wrong.
_MARGIN_BYTES = 32 * 1024 * 1024


@contextmanager
def disk_faults(directory: Path, needed_bytes: int) -> Generator[None]:
    """Turn the system's errors inside the block into ours about `directory`.

    Raises:
        DiskFullError: There was no room.
        CacheUnwritableError: Anything else that the file system refused.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            raise DiskFullError(directory, needed_bytes, reason) from error
        raise CacheUnwritableError(directory, reason) from error


def has_sum(path: Path, size_bytes: int, sha256: str) -> bool:
    """Whether `path` is a file of this length and sum. Costs about 0.7 s a GB."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != size_bytes:
                return False
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except FileNotFoundError:
        return False


class PartialFile:
    """A file that grows at its end, held by this process alone. Made by `claimed`.

    Args:
        descriptor: Open for reading and appending, and locked.
        path: Where it is.
        whole_bytes: Its length when done.
    """

    def __init__(self, descriptor: int, path: Path, whole_bytes: int) -> None:
        self._descriptor = descriptor
        self.path = path
        self.whole_bytes = whole_bytes

    @property
    def length_bytes(self) -> int:
        """How much is there."""
        return os.fstat(self._descriptor).st_size

    @property
    def missing_bytes(self) -> int:
        """How much is still to come."""
        return max(0, self.whole_bytes - self.length_bytes)

    def require_room(self, extra_bytes: int = 0) -> None:
        """Refuse to begin what the disk cannot hold.

        Args:
            extra_bytes: What the source needs beside the file itself while it works.

        Raises:
            DiskFullError: Less than that is free.
        """
        needed_bytes = self.missing_bytes + extra_bytes + _MARGIN_BYTES
        free_bytes = shutil.disk_usage(self.path.parent).free
        if free_bytes < needed_bytes:
            raise DiskFullError(self.path.parent, needed_bytes, f"{free_bytes / 1e6:,.1f} MB are free")

    def append(self, data: bytes) -> None:
        """Write all of `data` at the end; a full disk takes the file with it, to give the room back."""
        left = memoryview(data)
        try:
            with self.faults():
                while left:
                    left = left[os.write(self._descriptor, left) :]
        except DiskFullError:
            self.discard()
            raise

    def truncate(self, length_bytes: int) -> None:
        """Forget everything after `length_bytes`."""
        with self.faults():
            os.ftruncate(self._descriptor, length_bytes)

    def faults(self) -> AbstractContextManager[None]:
        """`disk_faults` for this file."""
        return disk_faults(self.path.parent, self.missing_bytes)

    def publish(self, final: Path) -> None:
        """Become `final` in one step: the bytes are on the disk before the name is."""
        with self.faults():
            os.fsync(self._descriptor)
            self.path.replace(final)
            directory = os.open(final.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def discard(self) -> None:
        """Remove the file."""
        with self.faults():
            self.path.unlink(missing_ok=True)

    def leave(self) -> None:
        """Release the lock; an empty file is no progress and goes."""
        if self.length_bytes == 0 and _is_at(self._descriptor, self.path):
            self.path.unlink()
        os.close(self._descriptor)


@contextmanager
def claimed(path: Path, whole_bytes: int, on_wait: Callable[[], None]) -> Generator[PartialFile]:
    """Hold the partial file at `path`, made if need be, until the block ends.

    Args:
        path: In a directory that exists.
        whole_bytes: The length of the file when done.
        on_wait: Called once if another process holds it; then this one waits, for as long as the other lives.
    """
    with disk_faults(path.parent, whole_bytes):
        descriptor = _lock(path, on_wait)
    partial = PartialFile(descriptor, path, whole_bytes)
    try:
        yield partial
    finally:
        partial.leave()


def _lock(path: Path, on_wait: Callable[[], None]) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _flock(descriptor, on_wait)
            # The holder before us may have published or removed the file that we waited for.
            if _is_at(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _flock(descriptor: int, on_wait: Callable[[], None]) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        on_wait()
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
