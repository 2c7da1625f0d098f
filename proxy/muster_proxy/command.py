"""`muster proxy`."""

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from muster_observability import logs, server
from muster_proxy import settings
from muster_proxy.app import create_app

PORT_SETTING = "--port or MUSTER_PROXY_PORT"

_NO_UPSTREAM = """muster proxy needs an engine to stand in front of:
  muster proxy --upstream http://127.0.0.1:8000
or a list `upstreams:` under `proxy:` in muster.yaml. To try Muster without an engine of your own: muster up"""


def run_proxy(
    upstreams: Sequence[str] | None,
    port: int | None,
    config: Path | None,
    tool_mode: str | None,
    limit: int | None,
) -> server.ExitCode:
    """Serve until told to stop; the arguments are the command's options."""
    try:
        loaded = settings.load(
            config, {"proxy": {"port": port, "upstreams": _given(upstreams or (), tool_mode, limit)}}
        )
        listener = _listener(loaded.proxy)
    except settings.ConfigurationError as error:
        return server.refuse(error, server.ExitCode.CONFIG)
    except server.PortTakenError as error:
        return server.refuse(error, server.ExitCode.UNAVAILABLE)
    logs.configure(loaded.log_level, loaded.log_format)
    return server.serve(create_app(loaded.proxy), listener, part="proxy", drain_s=loaded.proxy.drain_s)


def _given(urls: Sequence[str], tool_mode: str | None, limit: int | None) -> list[dict[str, Any]] | None:
    """The upstreams that the options describe; None where the file or the environment has them."""
    described = {"tool_mode": tool_mode, "limit": limit}
    described = {name: value for name, value in described.items() if value is not None}
    if described and not urls:
        raise settings.ConfigurationError("--tool-mode and --limit describe --upstream, which is missing")
    return [{"url": url, **described} for url in urls] or None


def _listener(proxy: settings.ProxySettings) -> socket.socket:
    if not proxy.upstreams:
        raise settings.ConfigurationError(_NO_UPSTREAM)
    return server.bind(proxy.port, PORT_SETTING)
