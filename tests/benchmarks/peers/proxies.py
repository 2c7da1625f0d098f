"""What is measured: Muster, its peers, and no proxy at all. Each runs as its own documentation says."""

import json
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from muster_proxy.keys import digest_of, new_key
from tests.benchmarks.peers.launch import free_port
from tests.benchmarks.peers.pace import MODEL

DIRECT = "direct"
MUSTER = "muster"
BASIS = "vllm-router"
"""The peer that the others' CPU is shown beside."""


@dataclass(frozen=True)
class Place:
    """Where a proxy is to run.

    Attributes:
        engine: Root URL of the engine behind it.
        port: On 127.0.0.1.
        directory: Its own, for what it reads and writes.
        programs: Folder of the installed programs; None where nothing is installed for it.
    """

    engine: str
    port: int
    directory: Path
    programs: Path | None = None

    def program(self, name: str) -> str:
        """Path of an installed program."""
        return str((self.programs or Path()) / name)


@dataclass(frozen=True)
class Proxy:
    """How a proxy is run.

    Attributes:
        name: Its row.
        command: Program and arguments; may write configuration first.
        requirement: What has to be installed for it, for pip.
        variables: Of its environment.
        key: API key that it asks clients for.
    """

    name: str
    command: Callable[[Place], Sequence[str]]
    requirement: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    key: str | None = None


MUSTER_KEY = new_key()
"""Muster is measured as it is run for others: every request shows a key, and the key is checked."""


def muster(place: Place, *options: str, **settings: Any) -> Sequence[str]:
    """`muster proxy` as a user runs it.

    Args:
        place: Where.
        options: Further options of the command.
        settings: Of the section `proxy` of its configuration, beside those that all benchmarks have.
    """
    config = place.directory / "muster.yaml"
    config.write_text(json.dumps({"proxy": {**_muster_settings(), **settings}}), "utf-8")  # JSON is YAML
    here = ["--upstream", place.engine, "--port", str(place.port), "--config", str(config)]
    return [sys.executable, "-m", "muster_proxy", "proxy", *here, *options]


def _muster_settings() -> dict[str, Any]:
    """What Muster is configured with in every benchmark."""
    return {"keys": [{"digest": digest_of(MUSTER_KEY), "tenant": "bench"}]}


def _vllm_router(place: Place) -> Sequence[str]:
    return [place.program("vllm-router"), *_worker(place), "--policy", "round_robin"]


def _sglang_router(place: Place) -> Sequence[str]:
    return [place.program("smg"), "launch", *_worker(place), "--policy", "round_robin"]


def _worker(place: Place) -> Sequence[str]:
    own = ["--host", "127.0.0.1", "--port", str(place.port), "--prometheus-port", str(free_port())]
    return ["--worker-urls", place.engine, *own]


_LITELLM_KEY = f"sk-{secrets.token_hex(32)}"
"""It does not start without one."""


def _litellm(place: Place) -> Sequence[str]:
    model = {
        "model_name": MODEL,
        "litellm_params": {"model": f"openai/{MODEL}", "api_base": f"{place.engine}/v1", "api_key": "none"},
    }
    config = place.directory / "config.yaml"
    config.write_text(json.dumps({"model_list": [model]}), "utf-8")
    return [
        place.program("litellm"),
        "--config",
        str(config),
        "--host",
        "127.0.0.1",
        "--port",
        str(place.port),
    ]


ALL = (
    Proxy(MUSTER, muster, key=MUSTER_KEY),
    Proxy("vllm-router", _vllm_router, "vllm-router==0.1.17"),
    Proxy("sglang-router", _sglang_router, "sglang-router==0.3.2"),
    Proxy(
        "litellm",
        _litellm,
        "litellm[proxy]==1.106.2",
        variables={
            "LITELLM_MASTER_KEY": _LITELLM_KEY,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it fetches the prices of models from the internet
        },
        key=_LITELLM_KEY,
    ),
)
