"""The `muster` command. Each subcommand imports what it needs when it runs, so that `--help` is instant."""

import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from muster_proxy.bench.command import bench
from muster_proxy.embedded.command import engine
from muster_proxy.up.command import up

UNAVAILABLE = 69  # server.ExitCode.UNAVAILABLE; an installation of one role may lack what that module needs

app = typer.Typer(
    name="muster",
    help="An OpenAI-compatible batching proxy for self-hosted language models, with an agent in front.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Settings come from options, MUSTER_* variables and muster.yaml: docs/configuration.md. "
    "Exit codes: 0 done, 1 failed, 2 usage, 69 a port, model or engine is not to be had, "
    "70 a part died, 74 disk, 78 a setting is wrong, 130 interrupted.",
)


def proxy(
    upstream: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="Root URL of an OpenAI-compatible server (a trailing /v1 is accepted). Repeat for several. "
            "[MUSTER_PROXY_UPSTREAMS]",
            show_default=False,
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            help="Port on 127.0.0.1; 0 takes a free one. [MUSTER_PROXY_PORT, 8080]", show_default=False
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Configuration file. [MUSTER_CONFIG, muster.yaml]", show_default=False
        ),
    ] = None,
    tool_mode: Annotated[
        str | None,
        typer.Option(
            metavar="MODE",
            help="Who makes tool calls on the --upstream engines: native (the engine; default), emulated "
            "(the proxy, for models that cannot), none.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Requests in flight on each --upstream at most; the rest waits in the proxy. [learned]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run the proxy alone, in front of any OpenAI-compatible server."""
    from muster_proxy.command import run_proxy  # noqa: PLC0415  see the module's docstring

    raise typer.Exit(run_proxy(upstream, port, config, tool_mode, limit))


def main() -> None:
    """Run the command line."""
    for command in (up, proxy, engine):
        app.command()(command)
    app.add_typer(bench, name="bench")
    for plugin in entry_points(group="muster.commands"):
        app.command(plugin.name)(plugin.load())
    try:
        app()
    except ModuleNotFoundError as error:
        if not error.name or error.name.startswith("muster_"):
            raise
        # An installation of one role has this command too, and not what it needs.
        print(  # noqa: T201  the command's answer
            f"muster: this command needs {error.name}, which is not installed here; "
            "install Muster whole, or with the extra of this command's role.",
            file=sys.stderr,
        )
        sys.exit(UNAVAILABLE)
