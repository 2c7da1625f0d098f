"""The agent's settings: command-line options first, then `MUSTER_AGENT_*` variables, then defaults.

A wrong value or an unknown variable is an error that names it: a misspelt setting must not pass silently.
"""

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from muster_observability.logs import LogFormat, LogLevel

PREFIX = "MUSTER_AGENT_"

_SYSTEM_PROMPT = (
    "You are a helpful assistant. Use a tool when it helps: the calculator for arithmetic, the clock for "
    "dates and times. Then answer briefly, in the user's language."
)


def _default_database() -> str:
    """In the folder that every part of Muster keeps its state in."""
    state = os.environ.get("MUSTER_STATE_DIR") or "~/.local/state/muster"
    return f"sqlite:///{Path(state).expanduser() / 'agent.db'}"


class SettingsError(Exception):
    """Settings are wrong.

    Attributes:
        problems: One sentence each, with the setting's name.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


def _root_url(url: str) -> str:
    """The root of the proxy: `http://host:port`, whether or not the user wrote `/v1` behind it."""
    root = url.rstrip("/").removesuffix("/v1").rstrip("/")
    parts = urlsplit(root)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("expected an address like http://127.0.0.1:8080")
    if parts.query or parts.fragment or parts.username is not None:
        raise ValueError("expected no credentials, query or fragment in the address")
    return root


def _split(text: object) -> object:
    """The environment has one text; commas stand between its parts."""
    return [part.strip() for part in text.split(",") if part.strip()] if isinstance(text, str) else text


def _origin(text: str) -> str:
    """An origin as browsers write it."""
    if text == "*":
        raise ValueError(
            "name each origin: with `*` any page that a user visits could use the service for him"
        )
    parts = urlsplit(text.lower().rstrip("/"))
    if (
        not parts.scheme
        or not parts.hostname
        or parts.path
        or parts.query
        or parts.fragment
        or "@" in parts.netloc
    ):
        raise ValueError("expected origins like https://chat.example.org or http://localhost:3000")
    default_port = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
    return f"{parts.scheme}://{parts.netloc.removesuffix(default_port)}"


def _host(text: str) -> str:
    """A host's name as `urlsplit` reads it."""
    if not text or urlsplit(f"//{text}").hostname != text.lower():
        raise ValueError("expected names without scheme and port, like agents.example.org")
    return text.lower()


class AgentSettings(BaseSettings):
    """What the agent service needs to know; each field is the variable `MUSTER_AGENT_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", frozen=True)

    port: int = Field(default=8081, ge=0, le=65535, description="TCP port on 127.0.0.1; 0 takes a free one.")
    proxy: Annotated[str, AfterValidator(_root_url)] = Field(
        default="http://127.0.0.1:8080",
        description="Root URL of the proxy, or of any OpenAI-compatible server; a trailing /v1 is accepted.",
    )
    model: str | None = Field(
        default=None,
        min_length=1,
        description="The model to think with; unset, the first that the proxy lists when first asked.",
    )
    api_key: SecretStr | None = Field(
        default=None,
        min_length=1,
        description="The service's own key for the proxy. Whoever sends no key acts with it; unset, without one.",
    )
    system_prompt: str = Field(
        default=_SYSTEM_PROMPT,
        description="Standing instructions of agents that have none of their own; a request's own system messages "
        "follow them.",
    )
    agents_file: Path | None = Field(
        default=None,
        description="The agents, as YAML (docs/agents.md); unset, one agent with a calculator and a clock.",
    )
    database_url: str = Field(
        default_factory=_default_database,
        description="Where threads and runs are kept: `sqlite:///file.db` for one process (its checkpoints lie in "
        "files beside it), `postgresql://user:password@host/name` for several.",
        repr=False,
    )
    secret: SecretStr | None = Field(
        default=None,
        description="Encrypts the keys of callers while their runs last: 32 bytes as URL-safe base64. Unset, one is "
        "made in a file beside a SQLite database; with PostgreSQL all replicas need the same.",
    )
    runs_at_once: int = Field(
        default=256, ge=1, le=10_000, description="Runs that this process runs at once; further ones wait."
    )
    lease_s: float = Field(
        default=15.0,
        ge=1,
        le=3600,
        description="Seconds after which the runs of a process that is silent are taken over by another.",
    )
    on_disconnect: Literal["as_asked", "cancel"] = Field(
        default="as_asked",
        description="`cancel` ends a run when the client that streams it hangs up, whatever the client asked for: some "
        "chat front ends ask for `continue` and have a stop button that only hangs up.",
    )
    allowed_origins: Annotated[
        tuple[Annotated[str, AfterValidator(_origin)], ...], NoDecode, BeforeValidator(_split)
    ] = Field(
        default=(),
        description="Origins whose pages may use the service from a browser (agent-chat-ui, `useStream`, Studio), with "
        "commas between; unset, only pages of its own origin.",
    )
    allowed_hosts: Annotated[
        tuple[Annotated[str, AfterValidator(_host)], ...], NoDecode, BeforeValidator(_split)
    ] = Field(
        default=(),
        description="Names in public DNS by which the service may be asked for where no key is needed, with commas "
        "between; addresses, names without a dot and those that end with .local, .internal or .svc always may.",
    )
    disconnect_grace_s: float = Field(
        default=2.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds in which a client may come back before `on_disconnect` ends its run.",
    )
    events_ttl_s: float = Field(
        default=3600.0,
        ge=1,
        allow_inf_nan=False,
        description="Seconds that a finished run's events can be streamed again.",
    )
    runs_ttl_s: float | None = Field(
        default=30 * 86400.0,
        ge=1,
        allow_inf_nan=False,
        description="Seconds that a finished run is listed.",
    )
    threads_ttl_s: float | None = Field(
        default=None,
        ge=1,
        allow_inf_nan=False,
        description="Seconds after its last change that a thread is deleted; unset, never.",
    )
    states_kept: int = Field(
        default=100, ge=1, description="Newest states of a thread that are kept: how far back history goes."
    )
    keep_alive_s: float = Field(
        default=15.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds of silence on a stream after which a comment is sent.",
    )
    drain_s: float = Field(
        default=5.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds that requests in flight have to finish once the service is told to stop.",
    )

    @model_validator(mode="after")
    def _secret_is_shared(self) -> Self:
        if self.secret is None and not self.database_url.startswith("sqlite"):
            raise ValueError(
                "MUSTER_AGENT_SECRET is needed with PostgreSQL, the same for all replicas; make one with: python -c "
                "'import base64, os; print(base64.urlsafe_b64encode(os.urandom(32)).decode())'"
            )
        return self


class LogSettings(BaseSettings):
    """How the process logs: `MUSTER_LOG_LEVEL` and `MUSTER_LOG_FORMAT`."""

    model_config = SettingsConfigDict(env_prefix="MUSTER_LOG_", env_ignore_empty=True, frozen=True)

    level: LogLevel = "info"
    format: LogFormat = "auto"


def load(options: Mapping[str, object]) -> AgentSettings:
    """Read the settings; `options` are those given on the command line, by field name.

    Raises:
        SettingsError: A value is wrong or a `MUSTER_AGENT_*` variable is unknown.
    """
    problems = _unknown_variables(os.environ)
    try:
        # pydantic-settings reads the environment for what is not passed.
        settings = AgentSettings.model_validate(AgentSettings(**dict(options)))  # pyright: ignore[reportArgumentType]
    except ValidationError as error:
        raise SettingsError(problems + _explain(error, PREFIX, options)) from error
    if problems:
        raise SettingsError(problems)
    return settings


def load_log() -> LogSettings:
    """Read the log settings.

    Raises:
        SettingsError: A value is wrong.
    """
    try:
        return LogSettings()
    except ValidationError as error:
        raise SettingsError(_explain(error, "MUSTER_LOG_", {})) from error


def _unknown_variables(environ: Mapping[str, str]) -> list[str]:
    known = [PREFIX + name.upper() for name in AgentSettings.model_fields]
    unknown = sorted(
        name for name in environ if name.upper().startswith(PREFIX) and name.upper() not in known
    )
    return [f"{name}: unknown setting; did you mean {_nearest(name, known)}?" for name in unknown]


def _nearest(name: str, known: list[str]) -> str:
    return difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.0)[0]


def _explain(error: ValidationError, prefix: str, options: Mapping[str, object]) -> list[str]:
    """One sentence a wrong setting; values are left out, since one may be a key."""
    problems: list[str] = []
    for detail in error.errors(include_url=False, include_context=False, include_input=False):
        field = str(detail["loc"][0]) if detail["loc"] else "settings"
        name = f"--{field}" if field in options else prefix + field.upper()
        problems.append(f"{name}: {detail['msg']}")
    return problems
