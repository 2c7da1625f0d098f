"""`agents.yaml`: the agents of a service, and what each may do.

An unknown key or a wrong value is an error that names it. Without a file there is one agent, `agent`, with a calculator
and a clock.
"""

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from muster_agent.tools.documents import DocumentsSettings
from muster_agent.tools.fetch import FetchSettings
from muster_agent.tools.mcp.settings import McpSettings
from muster_agent.tools.sql import SqlSettings

_IMPORT = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


class AgentsFileError(Exception):
    """`agents.yaml` cannot be used.

    Attributes:
        problems: One sentence each.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def _listed(value: object) -> object:
    return [cast("object", value)] if isinstance(value, dict) else value


class Limits(_Strict):
    """Where a run ends whatever the model wants."""

    model_calls: int = Field(default=8, ge=1, le=1000, description="Model calls between two user messages.")
    tool_calls: int = Field(default=32, ge=1, le=1000, description="Tool calls between two user messages.")
    same_call: int = Field(
        default=2,
        ge=1,
        le=100,
        description="Times that one tool is called with the same arguments; then it gives its first result again.",
    )
    run_timeout_s: float = Field(
        default=300.0, gt=0, le=604_800, description="Seconds for a run, waits included."
    )
    tool_timeout_s: float = Field(default=60.0, gt=0, le=86_400, description="Seconds for a tool call.")
    tool_output_characters: int = Field(
        default=4000, ge=200, le=1_000_000, description="Longest tool result; more is cut off."
    )


class Approval(_Strict):
    """Which tools ask a person first."""

    tools: Literal["changing", "none"] | list[str] = Field(
        default="changing",
        description="`changing`: every tool that changes the world. Or names of tools, which ask in place of those. "
        "`none` asks only before a change that follows content from outside.",
    )
    timeout_s: float = Field(
        default=3600.0,
        gt=0,
        le=31_536_000,
        description="Seconds until a question that nobody answers is denied.",
    )


class Summaries(_Strict):
    """When a long conversation is shortened."""

    share: float = Field(
        default=0.6, gt=0, lt=1, description="Share of the model's context that a conversation may fill."
    )
    context_tokens: int | None = Field(
        default=None, ge=256, description="The model's context; unset, what the proxy tells, else 4096."
    )
    keep_messages: int = Field(default=6, ge=1, description="Messages that stay as they are.")


class Tools(_Strict):
    """The tools of an agent."""

    calculator: bool = Field(default=False, description="Arithmetic.")
    time: bool = Field(default=False, description="The time in any time zone.")
    documents: Annotated[list[DocumentsSettings], BeforeValidator(_listed)] = Field(
        default_factory=list[DocumentsSettings], description="Search in folders of documents."
    )
    sql: Annotated[list[SqlSettings], BeforeValidator(_listed)] = Field(
        default_factory=list[SqlSettings], description="Questions to databases; nothing can be changed."
    )
    fetch: FetchSettings | None = Field(default=None, description="Pages of the hosts that are listed.")
    mcp: McpSettings | None = Field(default=None, description="Tools of MCP servers.")
    own: list[Annotated[str, StringConstraints(pattern=_IMPORT)]] = Field(
        default_factory=list[str],
        description="Your own LangChain tools, as `module:name`. A tool changes the world unless its metadata says "
        "`changes_world: false`.",
    )


def _default_tools() -> Tools:
    return Tools(calculator=True, time=True)


class Declaration(_Strict):
    """One agent."""

    description: str | None = Field(default=None, description="What it is for; shown to clients.")
    graph: Annotated[str, StringConstraints(pattern=_IMPORT)] | None = Field(
        default=None,
        description="Your own LangGraph graph, as `module:name`: a compiled graph, a builder, or a function that "
        "makes one. Nothing below but `limits.run_timeout_s` concerns it.",
    )
    openai_model: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:/-]{1,128}$")] | None = Field(
        default=None, description="The name by which OpenAI clients know it; unset, the agent's name."
    )
    model: str | None = Field(default=None, description="The model it thinks with; unset, the service's.")
    prompt: str | None = Field(default=None, description="Its standing instructions; unset, the service's.")
    temperature: float = Field(default=0.0, ge=0, le=2, description="A small model calls tools best at 0.")
    tools: Tools = Field(default_factory=_default_tools, description="What it can do.")
    limits: Limits = Field(default_factory=Limits, description="Where its runs end.")
    approval: Approval = Field(default_factory=Approval, description="What a person is asked.")
    summaries: Summaries | None = Field(
        default_factory=Summaries, description="When a long conversation is shortened; `null` for never."
    )


class AgentsFile(_Strict):
    """The whole file."""

    agents: dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")], Declaration] = Field(
        min_length=1, description="Agents by name. The name is also the assistant's in LangGraph's clients."
    )


def default_agents() -> AgentsFile:
    """The one agent that there is without a file."""
    return AgentsFile(agents={"agent": Declaration(openai_model="muster-agent")})


def load_agents(path: Path) -> AgentsFile:
    """Read `agents.yaml`; `${NAME}` and `${NAME:-default}` stand for variables of the environment.

    Raises:
        AgentsFileError: It cannot be read, or something in it is wrong.
    """
    try:
        content: object = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise AgentsFileError([f"{path} cannot be read: {error}"]) from error
    except yaml.YAMLError as error:
        raise AgentsFileError([f"{path} is not YAML: {error}"]) from error
    try:
        return AgentsFile.model_validate(_with_variables(content))
    except ValidationError as error:
        raise AgentsFileError([f"{path}: {problem}" for problem in _problems(error)]) from error


def _with_variables(value: object) -> object:
    match value:
        case str():
            return _VARIABLE.sub(_variable, value)
        case dict():
            return {key: _with_variables(item) for key, item in cast("dict[object, object]", value).items()}
        case list():
            return [_with_variables(item) for item in cast("list[object]", value)]
        case _:
            return value


def _variable(found: re.Match[str]) -> str:
    name: str = found[1]
    default: str | None = found[2]
    value = os.environ.get(name, default)
    if value is None:
        raise AgentsFileError([f"agents.yaml names the variable {name}, which is not set"])
    return value


def _problems(error: ValidationError) -> list[str]:
    """One sentence each; values are left out, since one may be a password."""
    problems: list[str] = []
    for detail in error.errors(include_url=False, include_context=False, include_input=False):
        where = ".".join(str(part) for part in detail["loc"])
        message = f"{where}: {detail['msg']}"
        if detail["type"] == "extra_forbidden":
            message = f"{where}: unknown key{_nearest(str(detail['loc'][-1]))}"
        problems.append(message)
    return problems


def _nearest(name: str) -> str:
    models: list[Any] = [AgentsFile, Declaration, Tools, Limits, Approval, Summaries]
    known = {field for model in models for field in model.model_fields}
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
