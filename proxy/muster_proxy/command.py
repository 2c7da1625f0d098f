"""`muster proxy`."""

import ipaddress
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muster_observability import logs, server
from muster_proxy import settings, workers
from muster_proxy.app import create_app
from muster_proxy.protocol import HttpServer

PORT_SETTING = "--port or MUSTER_PROXY_PORT"

_NO_UPSTREAM = """muster proxy needs an engine to stand in front of:
  muster proxy --upstream http://127.0.0.1:8000
or a list `upstreams:` under `proxy:` in muster.yaml. To try Muster without an engine of your own: muster up"""

_NO_KEYS = """muster proxy does not listen on {host} without keys, since others could reach it:
  muster key NAME      makes a key and prints the entry for `keys:` under `proxy:` in muster.yaml"""

_log = logs.get("proxy")


def run_proxy(
    upstreams: Sequence[str] | None,
    config: Path | None,
    options: Mapping[str, object],
    described: Mapping[str, object],
) -> server.ExitCode:
    """Serve until told to stop.

    Args:
        upstreams: URLs of the engines, in place of those in the configuration.
        config: The configuration file.
        options: Settings of the proxy that the command's options give; None counts as not given.
        described: Settings of those upstreams, likewise.
    """
    try:
        loaded = settings.load(
            config, {"proxy": {**options, "upstreams": _given(upstreams or (), described)}}
        )
        shares = workers.shares(loaded.proxy)
        listener = _listener(loaded.proxy)
    except settings.ConfigurationError as error:
        return server.refuse(error, server.ExitCode.CONFIG)
    except (server.PortTakenError, server.AddressError) as error:
        return server.refuse(error, server.ExitCode.UNAVAILABLE)
    logs.configure(loaded.log_level, loaded.log_format)
    if not loaded.proxy.keys:
        _log.warning(
            "no keys are configured: everybody on this machine may send requests", host=loaded.proxy.host
        )
    if len(shares) > 1:
        return workers.run_workers(shares, listener, loaded.log_level, loaded.log_format)
    app = create_app(loaded.proxy)
    manner = server.Manner(HttpServer(), app.readiness.drain, loaded.proxy.stop_delay_s)
    return server.serve(app, listener, part="proxy", drain_s=loaded.proxy.drain_s, manner=manner)


def _given(urls: Sequence[str], options: Mapping[str, object]) -> list[dict[str, Any]] | None:
    """The upstreams that the options describe; None where the file or the environment has them."""
    described = {name: value for name, value in options.items() if value is not None}
    if described and not urls:
        raise settings.ConfigurationError("--tool-mode and --limit describe --upstream, which is missing")
    return [{"url": url, **described} for url in urls] or None


def _listener(proxy: settings.ProxySettings) -> socket.socket:
    if not proxy.upstreams:
        raise settings.ConfigurationError(_NO_UPSTREAM)
    if not (proxy.keys or is_loopback(proxy.host)):
        raise settings.ConfigurationError(_NO_KEYS.format(host=proxy.host))
    return server.bind(proxy.port, PORT_SETTING, proxy.host)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
