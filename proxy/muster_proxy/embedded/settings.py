"""What can be set about the embedded engine."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from muster_proxy.embedded.model import DEFAULT_MODEL


class EngineSettings(BaseModel):
    """The embedded engine."""

    model_config = ConfigDict(extra="forbid")

    port: Annotated[int, Field(ge=0, le=65535)] = Field(
        default=8082, description="Port on 127.0.0.1; 0 takes a free one."
    )
    model: Path | None = Field(
        default=None,
        description="A GGUF file to serve. Without it a small instruct model (0.5 GB) is fetched once and kept.",
    )
    alias: Annotated[str, Field(min_length=1)] = Field(
        default=DEFAULT_MODEL.name, description="The name under which the model is served."
    )
    # Of 4, 8 and 16 slots, 8 gave the most tokens a second for 16 requests at once on two cores.
    slots: Annotated[int, Field(ge=1, le=256)] = Field(
        default=8, description="Requests worked on at once; each takes memory for a whole context."
    )
    context_tokens: Annotated[int, Field(ge=256)] = Field(
        default=4096, description="Tokens of prompt and answer together that one request may have."
    )
    threads: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Threads that compute. Default: the cores that this process may use."
    )
    gpu_layers: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Layers of the model to put on a GPU, where llama.cpp was built for one."
    )
