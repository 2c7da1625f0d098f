"""Every setting of the engine, the proxy and `muster up`, from `muster.yaml` and `MUSTER_*`.

An option of a command wins over the environment, the environment over the file, the file over the default.
A setting that does not exist is an error that names it.
"""

import difflib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_origin
from urllib.parse import SplitResult, urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from muster_observability.logs import LogFormat, LogLevel
from muster_proxy.embedded.settings import EngineSettings
from muster_proxy.keys import KeySettings, checked

PREFIX = "MUSTER_"
CONFIG_VARIABLE = "MUSTER_CONFIG"

# Variables that begin with MUSTER_ and are no setting of this model: the agent checks its own, and the rest
# are spoken between a supervisor and its children or by development tools.
_ELSEWHERE = ("MUSTER_AGENT_", "MUSTER_VLLM_", "MUSTER_TEST_", "MUSTER_SUPERVISED", CONFIG_VARIABLE)

ToolMode = Literal["native", "emulated", "none"]

_DNS = "dns:"

Port = Annotated[int, Field(ge=0, le=65535)]


class ConfigurationError(Exception):
    """A setting is unknown or has a wrong value; the message names it and says what is expected."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class UpstreamSettings(_Section):
    """One engine replica."""

    url: str = Field(
        description="Root URL of an OpenAI-compatible server; a trailing `/v1` is accepted. With `dns:` before it, "
        "each address of its host is an upstream of its own, and they are followed as they change."
    )
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = Field(
        default=None, description="Name in logs, metrics and `x-muster-upstream`. Default `upstream-N`."
    )
    limit: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="Requests in flight on it at most; what is above waits in the proxy. Without it that is "
        "learned: from the engine's metrics, or where it has none from how it bears what it is given.",
    )
    tool_mode: ToolMode = Field(
        default="native",
        description="`native`: the engine parses tool calls. `emulated`: the proxy does, with structured "
        "outputs, for models whose chat template ignores tools. `none`: a request with tools is refused.",
    )
    api_key: SecretStr | None = Field(default=None, description="Key that the engine asks for, if any.")
    cache_salt: bool = Field(
        default=True,
        description="Send `cache_salt`, one for each tenant, where there are keys: it keeps the tenants' prefixes "
        "apart in vLLM's cache. Turn off for an engine that refuses unknown fields.",
    )
    priorities: bool = Field(
        default=False,
        description="Send `priority` by class. vLLM takes it when started with `--scheduling-policy priority`.",
    )
    fetch_media: bool = Field(
        default=False,
        description="Let clients name images and sound by `http:` URLs, which the engine then fetches from its own "
        "network. Without it media comes as `data:` URLs.",
    )

    @property
    def is_dns(self) -> bool:
        """Whether each address of the URL's host is an upstream of its own."""
        return self.url.startswith(_DNS)

    @property
    def root(self) -> str:
        """The URL without `dns:`, a trailing slash or `/v1`."""
        return self.url.removeprefix(_DNS).rstrip("/").removesuffix("/v1").rstrip("/")

    def model_post_init(self, _context: object, /) -> None:
        """Refuse what is no root of an HTTP server."""
        parts = urlsplit(self.root)
        if parts.scheme not in ("http", "https") or not parts.hostname or not _has_valid_port(parts):
            raise ValueError("expected a URL like http://127.0.0.1:8000")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "a URL without credentials, query or fragment is expected; a key goes in api_key"
            )


def _has_valid_port(parts: SplitResult) -> bool:
    try:
        return parts.port != 0
    except ValueError:
        return False


class ProxySettings(_Section):
    """The OpenAI-compatible server."""

    host: str = Field(
        default="127.0.0.1",
        description="Address to listen on. One that others can reach needs `keys`.",
    )
    port: Port = Field(default=8080, description="Port; 0 takes a free one.")
    workers: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="Processes that serve the port, each with a scheduler of its own."
    )
    keys: Annotated[list[KeySettings], AfterValidator(checked)] = Field(
        default_factory=list[KeySettings],
        description="Who may send requests. `muster key` makes an entry. As a variable: JSON.",
        examples=['[{"digest": "sha256:...", "tenant": "ada"}]'],
    )
    aliases: dict[str, str] = Field(
        default_factory=dict[str, str],
        description="Other names of models: `{gpt-4o-mini: qwen2.5-7b-instruct}`. As a variable: JSON.",
        examples=['{"gpt-4o-mini": "qwen2.5-7b-instruct"}'],
    )
    upstreams: list[UpstreamSettings] = Field(
        default_factory=list[UpstreamSettings],
        description='The engines. As a variable: JSON, `[{"url": "http://127.0.0.1:8000"}]`.',
        examples=['[{"url": "http://127.0.0.1:8000"}]'],
    )
    max_body_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=10 * 1024 * 1024, description="Largest request body; above it 413."
    )
    max_waiting: Annotated[int, Field(ge=1)] = Field(
        default=10_000,
        description="Requests that may wait, of class interactive and of class standard each; above it 429 with "
        "`retry-after`.",
    )
    max_waiting_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=256 * 1024 * 1024,
        description="Bytes of bodies that may wait, of these two classes each; above it 429.",
    )
    max_wait_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=300.0,
        description="Seconds that a request of these classes may wait for a slot; after it 429.",
    )
    batch_max_waiting: Annotated[int, Field(ge=1)] = Field(
        default=50_000, description="Requests of class batch that may wait."
    )
    batch_max_waiting_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=256 * 1024 * 1024, description="Bytes of their bodies."
    )
    batch_max_wait_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=86_400.0, description="Seconds that each of them may wait."
    )
    scrape_interval_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=0.25,
        description="Seconds between two readings of an engine's `/metrics`; four times as many while nothing waits.",
    )
    single_flight: bool = Field(
        default=False,
        description="Let identical requests that are in flight together share one answer, where the client asks for "
        "`temperature: 0` and the same key pays.",
    )
    connect_timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=2.0, description="Seconds to open a connection to an engine."
    )
    first_byte_timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=600.0,
        description="Seconds that an engine has from a request to the first byte of its answer. For an answer that is "
        "no stream that is all of its generation.",
    )
    idle_timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=120.0, description="Seconds that an engine may be silent in the middle of an answer."
    )
    total_timeout_s: Annotated[float, Field(gt=0)] = Field(
        default=3600.0, description="Seconds that an engine has for a whole answer."
    )
    stall_s: Annotated[float, Field(gt=0)] = Field(
        default=60.0,
        description="Seconds without any sign of progress after which an engine with work counts as hung, whatever its "
        "`/health` says, and is given no more for a while.",
    )
    retries: Annotated[int, Field(ge=0, le=5)] = Field(
        default=2,
        description="Times that a request is sent to another upstream after one failed before its answer's first byte.",
    )
    keep_alive_s: Annotated[float, Field(ge=0)] = Field(
        default=15.0,
        description="Seconds of silence after which a stream's client is sent a comment, also while it waits for its "
        "turn; 0 for never.",
    )
    drain_s: Annotated[float, Field(gt=0)] = Field(
        default=30.0,
        description="Seconds that requests in flight have to finish when the proxy is told to stop.",
    )
    stop_delay_s: Annotated[float, Field(ge=0)] = Field(
        default=0.0,
        description="Seconds for which new requests are still taken after that, while `/health/ready` says 503. "
        "Behind a load balancer: what it takes to notice.",
    )


class Settings(BaseSettings):
    """All of them."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="_",
        env_nested_max_split=1,
        extra="forbid",
        nested_model_default_partial_update=True,
    )

    proxy: ProxySettings = Field(default_factory=ProxySettings)
    engine: EngineSettings = Field(default_factory=EngineSettings)
    state_dir: Path = Field(
        default=Path("~/.local/state/muster"),
        description="Where `muster up` keeps what it knows of a running stack, and the agents their threads.",
    )
    cache_dir: Path | None = Field(
        default=None,
        description="Where model weights are kept. Default `$XDG_CACHE_HOME/muster` or `~/.cache/muster`.",
    )
    log_level: LogLevel = Field(default="info", description="`debug`, `info`, `warning` or `error`.")
    log_format: LogFormat = Field(
        default="auto", description="`json`, `console`, or `auto`: console on a terminal, else JSON."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  likewise
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Options of a command first, then the environment, then the file."""
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls, _config_file())


def load(config: Path | None = None, options: Mapping[str, Any] | None = None) -> Settings:
    """Read the settings.

    Args:
        config: The configuration file; default `$MUSTER_CONFIG`, else `muster.yaml` here if there is one.
        options: What a command's options set, nested as the settings are; None counts as not given.

    Raises:
        ConfigurationError: The file cannot be read, or a setting is unknown or wrong.
    """
    if config is not None:
        os.environ[CONFIG_VARIABLE] = str(config)
    _check_variables()
    try:
        return Settings(**_given(options or {}))
    except ValidationError as error:
        raise ConfigurationError("\n".join(_told(error))) from None


def variables() -> dict[str, FieldInfo]:
    """Every environment variable that sets something here, with its field."""
    return dict(_variables(Settings, PREFIX))


def _variables(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, info in model.model_fields.items():
        variable = prefix + name.upper()
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _variables(info.annotation, variable + "_")
        else:
            yield variable, info


def _config_file() -> Path | None:
    named = os.environ.get(CONFIG_VARIABLE)
    path = Path(named).expanduser() if named else Path("muster.yaml")
    if not named and not path.is_file():
        return None
    try:
        content: object = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not YAML: {_first_line(error)}") from None
    if not isinstance(content, dict | None):
        raise ConfigurationError(f"{path}: expected settings by name, as `proxy: {{port: 8080}}`")
    return path


def _first_line(error: Exception) -> str:
    """Where the fault is, without the text around it."""
    mark: object = getattr(error, "problem_mark", None)
    line: object = getattr(mark, "line", None)
    return f"line {line + 1}" if isinstance(line, int) else type(error).__name__


def _check_variables() -> None:
    """Name a variable that sets nothing, or whose value cannot be read."""
    known = variables()
    for name in sorted(os.environ):
        if not name.startswith(PREFIX) or name.startswith(_ELSEWHERE):
            continue
        if name not in known:
            raise ConfigurationError(f"{name} is no setting{_nearest(name, known)}")
        if get_origin(known[name].annotation) in (list, dict):
            try:
                json.loads(os.environ[name])
            except json.JSONDecodeError:
                raise ConfigurationError(f"{name}: expected JSON, as {_example(known[name])}") from None


def _example(info: FieldInfo) -> str:
    return str((info.examples or [""])[0])


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    return f"; did you mean {near[0]}?" if near else "; see docs/configuration.md for all of them"


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options without those that were not given, at every depth."""
    given: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            value = _given(cast("Mapping[str, Any]", value))  # noqa: PLW2901  the value that counts
            if not value:
                continue
        if value is not None:
            given[name] = value
    return given


def _told(error: ValidationError) -> Iterator[str]:
    """A line for each fault, that names the setting; values are left out, they may be secrets."""
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        place = ".".join(str(step) for step in fault["loc"])
        if fault["type"] == "extra_forbidden":
            known = [name.removeprefix(PREFIX).lower().replace("_", ".", 1) for name in variables()]
            yield f"{place} is no setting{_nearest(place, known)}"
        else:
            yield f"{place}: {fault['msg'].removeprefix('Value error, ')}"
