"""Which MCP servers the agent may use, in the `mcpServers` shape that other clients have.

A key that nobody knows is an error, since a misspelt one could grant what was meant to be withheld. These keys
of other clients are read and do nothing here: `description`, and `autoApprove`, `alwaysAllow` and `trust`,
which would skip a question to the user (who approves what is not this toolkit's business, and a call that is
asked about is the safe side). Keys that would *withhold* something, like `disabledTools`, are errors instead.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from muster_agent.tools.complaints import ToolkitError

_REFERENCE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_TRANSPORTS: Final = {"stdio": "stdio", "http": "http", "streamablehttp": "http", "sse": "sse"}
_ONLY_STDIO: Final = ("args", "env", "cwd")

Transport = Literal["stdio", "http", "sse"]


def _spelt_alike(transport: object) -> object:
    """One word for the spellings in use: `streamable-http`, `streamable_http`, `streamableHttp`, `http`."""
    if isinstance(transport, str):
        return _TRANSPORTS.get(transport.lower().replace("-", "").replace("_", ""), transport)
    return transport


def _http_url(url: str | None) -> str | None:
    if url is not None and not re.fullmatch(r"https?://[^\s/?#@]+([/?][^\s#]*)?", url):
        raise ValueError("expected an address like https://tools.example.org/mcp, without credentials")
    return url


class McpServer(BaseModel):
    """One server: `command` starts a program that speaks over its standard streams, `url` asks one over HTTP."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, populate_by_name=True)

    command: str | None = Field(default=None, min_length=1, description="The program to start.")
    args: list[str] = Field(default=[], description="Its arguments.")
    env: dict[str, SecretStr] = Field(
        default={},
        description="Its environment, beside PATH, HOME and LANG. ${NAME} in a value stands for a variable "
        "of this service.",
    )
    cwd: Path | None = Field(default=None, description="The folder it runs in.")
    url: Annotated[str | None, AfterValidator(_http_url)] = Field(
        default=None, description="The server's endpoint."
    )
    headers: dict[str, SecretStr] = Field(
        default={}, description="Headers of each request; ${NAME} as in `env`."
    )
    transport: Annotated[Transport | None, BeforeValidator(_spelt_alike)] = Field(
        default=None,
        alias="type",
        description="stdio, http or sse; unset, stdio for a command and http (streamable HTTP) for a url.",
    )
    disabled: bool = Field(default=False, description="Leave this server out.")
    optional: bool = Field(
        default=False, description="A server that cannot be opened is left out; otherwise it is an error."
    )
    allow: list[str] | None = Field(
        default=None, description="The server's tools that the model gets; unset, all of them."
    )
    read_only: list[str] = Field(
        default=[], description="The server's tools that change nothing in the world; all others do."
    )
    pins: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] = Field(
        default={},
        description="SHA-256 of tools as logged when they were opened; one that has changed is left out.",
    )
    timeout_s: float = Field(
        default=30.0,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="Seconds to open a session, and seconds for each call.",
    )
    idle_s: float = Field(
        default=300.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds after which an unused session of a tenant is closed.",
    )
    most_sessions: int = Field(
        default=32, ge=1, description="Sessions, one a tenant; beyond them, the one unused for longest ends."
    )
    most_characters: int = Field(
        default=8000, ge=100, description="Characters of an answer that the model gets; the rest is cut."
    )
    most_message_bytes: int = Field(
        default=4_000_000,
        ge=1000,
        description="Bytes of one message of the server; a longer one ends the session.",
    )
    description: str = Field(default="", description="For people; unused.")
    autoApprove: object = Field(default=None, description="Of other clients; unused.")  # noqa: N815 - theirs
    alwaysAllow: object = Field(default=None, description="Of other clients; unused.")  # noqa: N815 - theirs
    trust: object = Field(default=None, description="Of other clients; unused.")

    @model_validator(mode="before")
    @classmethod
    def _one_name_of_transport(cls, data: object) -> object:
        if isinstance(data, dict) and "type" in data and "transport" in data:
            raise ValueError("expected `type` or `transport`, got both")
        return cast("object", data)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.command is None) == (self.url is None):
            raise ValueError("expected either `command` or `url`")
        if (self.transport or self.way) not in (("stdio",) if self.command else ("http", "sse")):
            raise ValueError("expected type stdio with `command`, and http or sse with `url`")
        strangers = _ONLY_STDIO if self.url else ("headers",)
        if wrong := [name for name in strangers if name in self.model_fields_set]:
            raise ValueError(f"{', '.join(wrong)}: only for a server of the other kind")
        return self

    @property
    def way(self) -> Transport:
        """How the server is spoken to."""
        return self.transport or ("stdio" if self.command else "http")


class McpSettings(BaseModel):
    """The servers, here or in a JSON file of the same shape."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, populate_by_name=True)

    servers: dict[Annotated[str, Field(min_length=1, max_length=64)], McpServer] = Field(
        default={}, alias="mcpServers", description="The servers by name."
    )
    file: Path | None = Field(
        default=None, description='A JSON file that holds {"mcpServers": {...}}, as other clients have it.'
    )

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if (self.file is None) == ("servers" not in self.model_fields_set):
            raise ValueError("expected either `mcpServers` or `file`")
        return self


class _McpFile(BaseModel):
    """What a file of another client holds; its other keys are that client's own."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    servers: dict[Annotated[str, Field(min_length=1, max_length=64)], McpServer] = Field(alias="mcpServers")


def enabled_servers(settings: McpSettings) -> dict[str, McpServer]:
    """The servers to open, by name; reads the file if there is one.

    Raises:
        ToolkitError: The file cannot be read or is wrong; the message names the keys, never their values.
    """
    servers = settings.servers if settings.file is None else _from_file(settings.file)
    return {name: server for name, server in servers.items() if not server.disabled}


def filled_in(values: Mapping[str, SecretStr], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """`values` with each `${NAME}` replaced by that variable.

    Raises:
        ToolkitError: A variable is not set.
    """

    def variable(match: re.Match[str]) -> str:
        if (found := environ.get(match[1])) is None:
            raise ToolkitError(f"the variable {match[1]} is not set")
        return found

    return {name: _REFERENCE.sub(variable, value.get_secret_value()) for name, value in values.items()}


def _from_file(file: Path) -> dict[str, McpServer]:
    try:
        content: Any = json.loads(file.read_bytes())
    except OSError as error:
        raise ToolkitError(f"mcp: the file {file} cannot be read ({error.strerror})") from None
    except ValueError:
        raise ToolkitError(f"mcp: the file {file} is not JSON") from None
    try:
        return _McpFile.model_validate(content).servers
    except ValidationError as error:
        raise ToolkitError("\n".join(_problems(error))) from None


def _problems(error: ValidationError) -> list[str]:
    """A sentence for each wrong key; values are left out, since one may be a key to something."""
    return [
        f"mcp: {'.'.join(str(step) for step in detail['loc']) or 'file'}: {detail['msg']}"
        for detail in error.errors(include_url=False, include_context=False, include_input=False)
    ]
