"""Brings a stack up: settings, ports, weights, then the supervisor."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from muster_observability import server
from muster_observability.server import ExitCode
from muster_proxy import settings
from muster_proxy.embedded.command import prepare_weights
from muster_proxy.embedded.errors import EmbeddedError
from muster_proxy.settings import ConfigurationError, Settings
from muster_proxy.up import parts
from muster_proxy.up.output import Output
from muster_proxy.up.supervisor import Supervisor

DEFAULT_AGENT_PORT = 8081
AGENT_PORT_VARIABLE = "MUSTER_AGENT_PORT"

# A person who pressed Ctrl-C waits for this; long answers end with an error event that says so.
_DRAIN_S = "2"

_WELCOME = """
  proxy   {proxy}/v1   {model}, for any OpenAI client
  agent   {agent}/v1   muster-agent: the same with tools
  engine  {engine}      (behind the proxy)

Paste one of these into another terminal:

curl -s {proxy}/v1/chat/completions -H 'content-type: application/json' -d '{{"model": "{model}", "messages": \
[{{"role": "user", "content": "What is the capital of France?"}}]}}'

{python} -c "from openai import OpenAI; print(OpenAI(base_url='{proxy}/v1', api_key='-').chat.completions.create(\
model='{model}', messages=[{{'role': 'user', 'content': 'Write a haiku about queues.'}}]).choices[0].message.content)"

curl -s {agent}/v1/chat/completions -H 'content-type: application/json' -d '{{"model": "muster-agent", "messages": \
[{{"role": "user", "content": "What is 23*7? Use the calculator."}}]}}'

Ctrl-C stops all three."""


def run_stack(options: Mapping[str, Any], agent_port: int | None, config: Path | None) -> ExitCode:
    """Run engine, proxy and agent until told to stop; the arguments are the options of `muster up`."""
    server.interrupt_on_stop_signals()
    try:
        loaded = settings.load(config, options)
        agent_port = _agent_port(agent_port)
        state = loaded.state_dir.expanduser() / "up.json"
        _check_ports(loaded, agent_port, state)
        prepare_weights(loaded.engine, loaded.cache_dir)
        return _supervise(loaded, agent_port, state)
    except ConfigurationError as error:
        return server.refuse(error, ExitCode.CONFIG)
    except server.PortTakenError as error:
        return server.refuse(error, ExitCode.UNAVAILABLE)
    except EmbeddedError as error:
        return server.refuse(error, error.exit_code)
    except KeyboardInterrupt:
        return server.refuse(
            "interrupted; the same command goes on where this one stopped", ExitCode.INTERRUPTED
        )


def _agent_port(given: int | None) -> int:
    """The agent's port; the agent's other settings are its own to read."""
    value = str(given) if given is not None else os.environ.get(AGENT_PORT_VARIABLE, str(DEFAULT_AGENT_PORT))
    if not value.isdigit() or int(value) > 65535:  # noqa: PLR2004  TCP's own number
        raise ConfigurationError(f"{AGENT_PORT_VARIABLE}: expected a port from 0 to 65535, got {value!r}")
    return int(value)


def _check_ports(loaded: Settings, agent_port: int, state: Path) -> None:
    """Find a taken port before anything is started or fetched.

    Raises:
        server.PortTakenError: With the setting that chooses another; and with the process that holds it, where
            that is a stack of ours.
    """
    wanted = {
        "--engine-port or MUSTER_ENGINE_PORT": loaded.engine.port,
        "--proxy-port or MUSTER_PROXY_PORT": loaded.proxy.port,
        "--agent-port or MUSTER_AGENT_PORT": agent_port,
    }
    with contextlib.ExitStack() as held:
        for setting, port in wanted.items():
            try:
                held.enter_context(server.bind(port, setting))
            except server.PortTakenError:
                if running := _running(state):
                    print(f"muster: another muster up runs as process {running}", file=sys.stderr)  # noqa: T201  as above
                raise


def _supervise(loaded: Settings, agent_port: int, state: Path) -> ExitCode:
    output = Output()
    stack = parts.of(loaded, agent_port)
    urls = {part.name: part.url for part in stack}
    environment = {
        "MUSTER_LOG_LEVEL": loaded.log_level,
        "MUSTER_LOG_FORMAT": _log_format(loaded),
        "MUSTER_PROXY_DRAIN_S": os.environ.get("MUSTER_PROXY_DRAIN_S", _DRAIN_S),
        "MUSTER_AGENT_DRAIN_S": os.environ.get("MUSTER_AGENT_DRAIN_S", _DRAIN_S),
    }
    if loaded.cache_dir is not None:
        environment["MUSTER_CACHE_DIR"] = str(loaded.cache_dir)
    welcome = _WELCOME.format(**urls, model=loaded.engine.alias, python=_this_python())
    with _recorded(state, urls):
        return asyncio.run(Supervisor(stack, output, environment).run(welcome))


def _this_python() -> str:
    """The interpreter that has the openai package, as short as it can be typed here."""
    here = os.path.relpath(sys.executable)
    return sys.executable if here.startswith("..") else here


def _log_format(loaded: Settings) -> str:
    """The parts write into a pipe: what `auto` means is for the terminal at its end to say."""
    if loaded.log_format != "auto":
        return loaded.log_format
    return "console" if sys.stderr.isatty() else "json"


@contextlib.contextmanager
def _recorded(state: Path, urls: dict[str, str]) -> Generator[None]:
    """Keep a note of the running stack, for scripts and for the next `muster up`."""
    try:
        state.parent.mkdir(parents=True, exist_ok=True)
        state.write_text(json.dumps({"pid": os.getpid(), **urls}))
    except OSError as error:
        raise ConfigurationError(
            f"{state.parent} cannot be written ({error.strerror}); choose another with MUSTER_STATE_DIR"
        ) from None
    try:
        yield
    finally:
        state.unlink(missing_ok=True)


def _running(state: Path) -> int | None:
    """The process id of the stack that the note tells of, if it still runs."""
    try:
        pid = int(json.loads(state.read_text())["pid"])
        os.kill(pid, 0)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return pid
