"""`muster up`, which is what `make run` runs."""

from pathlib import Path
from typing import Annotated

import typer


def up(
    engine_port: Annotated[
        int | None, typer.Option(help="The engine's port. [MUSTER_ENGINE_PORT, 8082]", show_default=False)
    ] = None,
    proxy_port: Annotated[
        int | None, typer.Option(help="The proxy's port. [MUSTER_PROXY_PORT, 8080]", show_default=False)
    ] = None,
    agent_port: Annotated[
        int | None, typer.Option(help="The agent's port. [MUSTER_AGENT_PORT, 8081]", show_default=False)
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A GGUF file to serve. Without it a small instruct model is fetched once (0.5 GB) and kept. "
            "[MUSTER_ENGINE_MODEL]",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Configuration file. [MUSTER_CONFIG, muster.yaml]", show_default=False
        ),
    ] = None,
) -> None:
    """Run engine, proxy and agent together on this machine; Ctrl-C stops all three."""
    from muster_proxy.up.stack import run_stack  # noqa: PLC0415  `muster --help` imports none of it

    options = {
        "engine": {"port": engine_port, "model": model},
        "proxy": {"port": proxy_port},
    }
    raise typer.Exit(run_stack(options, agent_port, config))
